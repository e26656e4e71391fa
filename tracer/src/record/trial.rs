//! Which way of recording takes little enough of the targets' CPU time: each is tried for a moment, from what says most to what takes least.
//!
//! First every allocation by probes, then a sample of them by the same probes, which spares the walks of stacks, then growth mode, which has
//! none. A target that samples itself is recorded by its own sample from the start.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Config, Exits, PendingRequests, Watching, attach,
    cost_limit::{CostLimit, TRIAL},
    session::Session,
    too_much,
};
use crate::{
    model::{Bytes, End, Mode, Pid},
    target::Target,
};

/// What came of trying probes.
enum Trial {
    /// They take little.
    Passed,
    /// They are to be taken out again, and why; a sample of one in so many bytes would take little.
    Failed { why: String, sample: Option<Bytes> },
    /// The recording is over already.
    Ended(End),
}

/// How long a way is tried at most, of targets that others leave hardly a CPU: one that got 14 thousandths of a CPU had none for two seconds.
const LONGEST: Duration = Duration::from_secs(10);

/// What targets did while probes were tried.
enum Worked {
    /// They could work for so long.
    For(Duration),
    /// The recording is over already.
    Until(End),
}

/// Of a target that samples itself: what the sampler does where nobody says otherwise.
const OWN_SAMPLE: Bytes = Bytes(512 << 10);

/// How a line begins that says that not every allocation is recorded, and why.
pub const SAMPLED: &str = "sampled, since ";
/// How a line begins that says that allocations are not recorded, and why.
pub const GROWTH: &str = "growth mode, since ";

impl Watching<'_> {
    /// Tries one way after the other until one takes little enough, and leaves the session to record by that. Gives the end if the recording
    /// is over by then.
    pub(super) async fn choose(
        &mut self,
        limit: CostLimit,
        targets: &[Pid],
        session: &mut Session,
        asked: &mut PendingRequests<'_>,
        exits: &mut Exits,
    ) -> Result<Option<End>> {
        let mut way = self.config.clone();
        if way.sample == Bytes(0) && session.samples_itself() {
            way.sample = OWN_SAMPLE;
            if !replace(session, exits, &way, targets).await? {
                return Ok(Some(End::TargetExited));
            }
        }
        let (mut reasons, usual_use) = (Vec::new(), session.usual_use());
        while way.mode == Mode::Allocations {
            match self.try_probes(limit, usual_use, session, asked, exits).await? {
                Trial::Passed => break,
                Trial::Ended(end) => return Ok(Some(end)),
                Trial::Failed { why, sample } => {
                    reasons.push(why);
                    match sample {
                        Some(sample) => way.sample = sample,
                        None => (way.mode, way.sample) = (Mode::Growth, Bytes(0)),
                    }
                }
            }
            if way.mode == Mode::Growth {
                asked.observer.say(&format!("{GROWTH}{}", reasons.join(", and ")));
            }
            if !replace(session, exits, &way, targets).await? {
                return Ok(Some(End::TargetExited));
            }
        }
        if way.mode == Mode::Allocations && !reasons.is_empty() {
            asked.observer.say(&format!("{SAMPLED}{}: one in {}", reasons.join(", and "), way.sample));
        }
        Ok(None)
    }

    /// Lets the probes be for a moment, and judges what they took of the targets' CPU time.
    async fn try_probes(
        &mut self,
        limit: CostLimit,
        usual_use: Option<f64>,
        session: &mut Session,
        asked: &mut PendingRequests<'_>,
        exits: &mut Exits,
    ) -> Result<Trial> {
        let failed = |why| Ok(Trial::Failed { why, sample: None });
        if let Err(nothing) = session.check_allocators() {
            return failed(format!("{nothing:#}"));
        }
        let had = match self.let_work(session, asked, exits).await? {
            Worked::For(had) => had,
            Worked::Until(end) => return Ok(Trial::Ended(end)),
        };
        let Some(cost) = session.cost_of_moment() else {
            return failed("what probes take cannot be measured here".into());
        };
        let cost = usual_use.map_or(cost, |usual_use| cost.as_usual(usual_use, had));
        if !limit.is_exceeded(cost.overhead, session.cpus(), had) {
            return Ok(Trial::Passed);
        }
        let percent = cost.overhead.percent;
        match session.sample() {
            Bytes(0) => {
                let sample = limit.sample(&cost, session.cpus(), had);
                let why = too_much(percent, limit);
                let hits = cost.percent_without_walks();
                Ok(Trial::Failed {
                    why: if sample.is_some() {
                        why
                    } else {
                        format!("{why}, {hits:.0} % without a look at any stack")
                    },
                    sample,
                })
            }
            sample => failed(format!("a sample of one in {sample} {percent:.0} %")),
        }
    }

    /// Waits for a moment; and on where the targets had work to do in it, and others had the CPUs. Looks each moment, since who waits for
    /// long is counted as one that did only once the wait is over.
    async fn let_work(
        &mut self,
        session: &mut Session,
        asked: &mut PendingRequests<'_>,
        exits: &mut Exits,
    ) -> Result<Worked> {
        let (began, mut had) = (Instant::now(), Duration::ZERO);
        let (mut looked, mut before) = (began, session.threads());
        loop {
            match self.watch(Some(TRIAL), session, asked, exits).await? {
                End::Duration => {}
                end => return Ok(Worked::Until(end)),
            }
            let (time, now) = (looked.elapsed(), session.threads());
            had += Duration::from_nanos(now.had_since(&before, time.as_nanos() as u64));
            if had >= TRIAL / 2 || began.elapsed() >= LONGEST {
                return Ok(Worked::For(had));
            }
            (looked, before) = (looked + time, now);
        }
    }
}

/// Takes the probes out, and goes on this way with the targets that are left. `false` where none is: then the session has all that there
/// will be of them.
async fn replace(session: &mut Session, exits: &mut Exits, way: &Config, targets: &[Pid]) -> Result<bool> {
    session.take_probes_out();
    let left: Vec<Pid> = targets.iter().copied().filter(|&pid| Target::open(pid).is_ok()).collect();
    if left.is_empty() {
        return Ok(false);
    }
    match attach(way, &left) {
        Ok(attached) => (*session, *exits) = attached,
        Err(_) if exits.all_soon().await => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}
