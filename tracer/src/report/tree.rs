//! The stacks of a view as one tree of calls: what flame graphs draw.

use std::cmp::Reverse;

use super::WeightUnit;
use super::view::{BoxNames, View, boxes, number};
use crate::model::Profile;

/// A tree of calls. Its root, which is node 0, stands for everything; a node comes right after its parent, or after all that is
/// below the one beside it.
pub(super) struct Tree<'a> {
    pub nodes: Vec<Node>,
    /// Where each stack of the view ends.
    pub ends_of_stacks: Vec<u32>,
    pub names: BoxNames<'a>,
}

/// A function as its ancestors called it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub parent: u32,
    /// How many boxes are around it; those of the root are none.
    pub depth: u32,
    /// Number of its name; of no meaning at the root.
    pub name: u32,
    /// What stacks that end here weigh in bytes.
    pub bytes: u64,
    /// The blocks of these stacks.
    pub objects: u64,
}

impl Node {
    const fn new(parent: u32, depth: u32, name: u32) -> Self {
        Self { parent, depth, name, bytes: 0, objects: 0 }
    }

    /// What stacks that end here weigh.
    pub const fn own(&self, weight: WeightUnit) -> u64 {
        match weight {
            WeightUnit::Bytes => self.bytes,
            WeightUnit::Objects => self.objects,
        }
    }
}

impl<'a> Tree<'a> {
    pub fn new(profile: &'a Profile, view: &View<'a>) -> Self {
        let (paths, names) = Paths::new(profile, view);
        let mut nodes = vec![Node::new(0, 0, 0)];
        let mut ends_of_stacks = vec![0; view.stacks.len()];
        // The nodes from the root to the end of the path before.
        let mut way = vec![0];
        let mut before: &[u32] = &[];
        for stack in paths.in_order() {
            let path = paths.of(stack);
            let common = path.iter().zip(before).take_while(|(name, before)| name == before).count();
            way.truncate(common + 1);
            for &name in &path[common..] {
                nodes.push(Node::new(way[way.len() - 1], number(way.len()), name));
                way.push(number(nodes.len() - 1));
            }
            let end = way[way.len() - 1];
            ends_of_stacks[stack] = end;
            let (end, stack) = (&mut nodes[end as usize], view.stacks[stack]);
            end.bytes = end.bytes.saturating_add(stack.weight_bytes);
            end.objects = end.objects.saturating_add(stack.outstanding_objects);
            before = path;
        }
        Self { nodes, ends_of_stacks, names }
    }

    /// What every node weighs with all that it called.
    pub fn totals(&self, weight: WeightUnit) -> Vec<u64> {
        let mut totals: Vec<u64> = self.nodes.iter().map(|node| node.own(weight)).collect();
        for (i, node) in self.nodes.iter().enumerate().skip(1).rev() {
            let parent = node.parent as usize;
            totals[parent] = totals[parent].saturating_add(totals[i]);
        }
        totals
    }

    /// What the heaviest of the outermost boxes weighs.
    pub fn heaviest(&self, weight: WeightUnit) -> u64 {
        let outermost = self.nodes.iter().zip(self.totals(weight)).filter(|(node, _)| node.depth == 1);
        outermost.map(|(_, total)| total).max().unwrap_or(0)
    }

    /// Gives what is lighter than `least` to its caller.
    pub fn prune(&mut self, weight: WeightUnit, least: u64) {
        let totals = self.totals(weight);
        for i in (1..self.nodes.len()).rev() {
            if totals[i] < least {
                let Node { parent, bytes, objects, .. } = self.nodes[i];
                let parent = &mut self.nodes[parent as usize];
                parent.bytes = parent.bytes.saturating_add(bytes);
                parent.objects = parent.objects.saturating_add(objects);
                (self.nodes[i].bytes, self.nodes[i].objects) = (0, 0);
            }
        }
    }

    /// The stacks as lines, `outermost;..;innermost weight`, heaviest first. A semicolon cannot stand in
    /// a name (a Rust type may hold one: `[u8; 8]`), `semicolon` stands for it.
    pub fn folded(&self, weight: WeightUnit, semicolon: &str) -> impl Iterator<Item = String> {
        let names: Vec<String> = self.names.texts().map(|text| text.replace(';', semicolon)).collect();
        self.ends(weight).into_iter().map(move |(node, weight)| {
            let path: Vec<&str> = self.path(node).iter().map(|&name| names[name as usize].as_str()).collect();
            format!("{} {weight}", path.join(";"))
        })
    }

    /// The nodes where stacks end, and what these weigh, heaviest first.
    pub fn ends(&self, weight: WeightUnit) -> Vec<(usize, u64)> {
        let own = self.nodes.iter().map(|node| node.own(weight));
        let mut ends: Vec<(usize, u64)> = own.enumerate().filter(|(_, own)| *own > 0).collect();
        ends.sort_by_key(|&(_, own)| Reverse(own));
        ends
    }

    /// The names on the way from the root to a node.
    pub fn path(&self, mut node: usize) -> Vec<u32> {
        let mut path = Vec::with_capacity(self.nodes[node].depth as usize);
        while node != 0 {
            path.push(self.nodes[node].name);
            node = self.nodes[node].parent as usize;
        }
        path.reverse();
        path
    }
}

/// The names of the boxes of every stack, outermost first.
struct Paths {
    names: Vec<u32>,
    /// Where the path of a stack ends in `names`, and that of the next one begins.
    ends: Vec<usize>,
}

impl Paths {
    fn new<'a>(profile: &'a Profile, view: &View<'a>) -> (Self, BoxNames<'a>) {
        let mut names = BoxNames::new(profile);
        let mut paths = Self { names: Vec::new(), ends: Vec::with_capacity(view.stacks.len()) };
        for stack in &view.stacks {
            paths.names.extend(boxes(profile, stack).map(|role| names.number(role)));
            paths.ends.push(paths.names.len());
        }
        (paths, names)
    }

    fn of(&self, stack: usize) -> &[u32] {
        let start = stack.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.names[start..self.ends[stack]]
    }

    /// The stacks by their paths: those that begin alike are beside each other, so a tree is made of one after the other, and nothing
    /// is looked up. Names have their numbers in the order in which heavy stacks bring them, so heavy branches tend to come first.
    fn in_order(&self) -> Vec<usize> {
        let mut stacks: Vec<usize> = (0..self.ends.len()).collect();
        stacks.sort_unstable_by_key(|&stack| self.of(stack));
        stacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Options, fixtures};

    fn tree(profile: &Profile) -> Tree<'_> {
        Tree::new(profile, &View::new(profile, &Options::default()))
    }

    #[test]
    fn totals_add_up_whatever_is_pruned() {
        for (name, profile) in fixtures::all() {
            for weight in [WeightUnit::Bytes, WeightUnit::Objects] {
                let mut tree = tree(&profile);
                let total = tree.totals(weight)[0];
                for least in [0, 1, 1_000, 1 << 20, u64::MAX] {
                    tree.prune(weight, least);
                    let totals = tree.totals(weight);
                    assert_eq!(totals[0], total, "{name}");
                    assert!(totals[1..].iter().all(|&total| total == 0 || total >= least), "{name}");
                }
            }
        }
    }

    #[test]
    fn common_callers_are_one_node() {
        let profile = fixtures::several();
        let tree = tree(&profile);
        // Three processes of three boxes each, and one that has no frames: the names of boxes differ by process.
        assert_eq!(tree.nodes.len(), 1 + 3 * 4 + 2);
    }

    #[test]
    fn what_is_below_a_node_comes_before_what_is_not() {
        for (name, profile) in fixtures::all() {
            let tree = tree(&profile);
            let mut way = vec![0];
            for (node, i) in tree.nodes.iter().zip(0..).skip(1) {
                way.truncate(node.depth as usize);
                assert_eq!(way.last(), Some(&node.parent), "{name}");
                way.push(i);
            }
        }
    }
}
