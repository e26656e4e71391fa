//! A plan as text: every probe with its place and the reason for it, then what is not probed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Catalog, Exits, ObjectPlan, PlannedProbe, ProbePlacement};

/// Shows a plan; columns are aligned, one line a probe.
#[derive(Clone, Copy, Debug)]
pub struct PlanTable<'a> {
    /// The plan.
    pub plan: &'a ObjectPlan,
    /// The catalog it was made with.
    pub catalog: &'a Catalog,
}

const HEADINGS: [&str; 7] = ["FUNCTION", "ADDRESS", "AT", "PROBES", "COST", "INSTRUCTION", "WHY"];

impl PlanTable<'_> {
    fn row(&self, probe: &PlannedProbe) -> [String; 7] {
        let site = probe.place.site();
        let probes = match &probe.place {
            ProbePlacement::EntryAndReturn(_) => "entry+return".to_owned(),
            ProbePlacement::EntryAndExits { exits, .. } => format!("entry+{} exits", exits.known.len()),
            ProbePlacement::Entry { .. } => "entry".to_owned(),
        };
        let reason = match &probe.place {
            ProbePlacement::EntryAndExits { exits: Exits { unknown: 0, .. }, .. } => {
                format!("{}; throws, so each `ret` is probed (single-stepped)", site.reason)
            }
            ProbePlacement::EntryAndExits { exits: Exits { unknown, .. }, .. } => format!(
                "{}; throws, so each `ret` is probed (single-stepped); calls that leave by one of {unknown} computed jumps \
                 count as lost",
                site.reason
            ),
            _ => site.reason.to_string(),
        };
        [
            self.catalog.get(probe.api).map_or("?", |api| api.display_name()).to_owned(),
            format!("{:#x}", site.function_svma),
            format!("+{:#x}", site.offset_in_function),
            probes,
            site.cost.to_string(),
            site.instruction.clone(),
            match probe.aliases.as_slice() {
                [] => reason,
                aliases => format!("{reason} (also {})", aliases.join(", ")),
            },
        ]
    }
}

impl PlanTable<'_> {
    /// The probes by which the file tells of its blocks: those that are alike in one line.
    fn write_told(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut alike: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for probe in &self.plan.usdt.probes {
            let function = probe.function.and_then(|id| self.catalog.get(id));
            let place =
                function.map_or_else(|| format!("{:#x}", probe.svma), |api| api.display_name().to_owned());
            let semaphore = if probe.semaphore.is_some() { "by semaphore" } else { "without semaphore" };
            let kind = (probe.event.name(), &probe.format, &probe.instruction, semaphore);
            alike.entry(kind).or_default().insert(place);
        }
        for ((name, arguments, instruction, semaphore), places) in alike {
            let places = places.into_iter().collect::<Vec<_>>().join(", ");
            writeln!(f, "with --sample: {name} `{arguments}`, {instruction}, {semaphore}: in {places}")?;
        }
        Ok(())
    }
}

impl fmt::Display for PlanTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(self.plan.probes.iter().map(|probe| self.row(probe)));
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        if !self.plan.probes.is_empty() {
            for row in &rows {
                let (last, cells) = row.split_last().expect("a row has seven cells");
                for (cell, width) in cells.iter().zip(widths) {
                    write!(f, "{cell:width$}  ")?;
                }
                writeln!(f, "{last}")?;
            }
        }
        self.write_told(f)?;
        if !self.plan.detours.is_empty() {
            let words = self.plan.detours.len();
            writeln!(
                f,
                "while it is traced, {words} words of the allocator's tables lead to its functions by the nops in front of them"
            )?;
        }
        for skipped in &self.plan.skipped {
            writeln!(f, "not probed: {}: {}", skipped.name, skipped.why)?;
        }
        Ok(())
    }
}
