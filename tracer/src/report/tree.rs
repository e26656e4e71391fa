//! The stacks of a view as one tree of calls: what flame graphs draw.

use super::view::{Names, View, boxes, number};
use super::{QuickMap, Weight};
use crate::model::Profile;

/// A tree of calls. Its root, which is node 0, stands for everything; a node comes after its parent.
pub(super) struct Tree<'a> {
    pub nodes: Vec<Node>,
    /// Where each stack of the view ends.
    pub ends_of_stacks: Vec<u32>,
    pub names: Names<'a>,
}

/// A function as its ancestors called it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub parent: u32,
    /// Number of its name; of no meaning at the root.
    pub name: u32,
    /// What stacks that end here weigh in bytes.
    pub bytes: u64,
    /// The blocks of these stacks.
    pub objects: u64,
}

impl Node {
    const fn new(parent: u32, name: u32) -> Self {
        Self { parent, name, bytes: 0, objects: 0 }
    }

    /// What stacks that end here weigh.
    pub const fn own(&self, weight: Weight) -> u64 {
        match weight {
            Weight::Bytes => self.bytes,
            Weight::Objects => self.objects,
        }
    }
}

impl<'a> Tree<'a> {
    pub fn new(profile: &'a Profile, view: &View<'a>) -> Self {
        let mut names = Names::new(profile);
        let mut nodes = vec![Node::new(0, 0)];
        let mut ends_of_stacks = Vec::with_capacity(view.stacks.len());
        let mut children: QuickMap<(u32, u32), u32> = QuickMap::default();
        for stack in &view.stacks {
            let mut at = 0;
            for role in boxes(profile, stack) {
                let name = names.number(role);
                at = *children.entry((at, name)).or_insert_with(|| {
                    nodes.push(Node::new(at, name));
                    number(nodes.len() - 1)
                });
            }
            ends_of_stacks.push(at);
            let leaf = &mut nodes[at as usize];
            leaf.bytes = leaf.bytes.saturating_add(stack.weight_bytes);
            leaf.objects = leaf.objects.saturating_add(stack.outstanding_objects);
        }
        Self { nodes, ends_of_stacks, names }
    }

    /// What every node weighs with all that it called.
    pub fn totals(&self, weight: Weight) -> Vec<u64> {
        let mut totals: Vec<u64> = self.nodes.iter().map(|node| node.own(weight)).collect();
        for (i, node) in self.nodes.iter().enumerate().skip(1).rev() {
            let parent = node.parent as usize;
            totals[parent] = totals[parent].saturating_add(totals[i]);
        }
        totals
    }

    /// Gives what is lighter than `least` to its caller.
    pub fn prune(&mut self, weight: Weight, least: u64) {
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

    /// The stacks as lines, `outermost;..;innermost weight`, in the order in which they came. A semicolon cannot stand in
    /// a name (a Rust type may hold one: `[u8; 8]`), `semicolon` stands for it.
    pub fn folded(&self, weight: Weight, semicolon: &str) -> impl Iterator<Item = String> {
        let names: Vec<String> = self.names.texts().map(|text| text.replace(';', semicolon)).collect();
        self.ends(weight).map(move |(node, weight)| {
            let path: Vec<&str> = self.path(node).iter().map(|&name| names[name as usize].as_str()).collect();
            format!("{} {weight}", path.join(";"))
        })
    }

    /// The nodes where stacks end, and what these weigh, in the order in which they came.
    pub fn ends(&self, weight: Weight) -> impl Iterator<Item = (usize, u64)> {
        self.nodes.iter().map(move |node| node.own(weight)).enumerate().filter(|(_, own)| *own > 0)
    }

    /// The names on the way from the root to a node.
    pub fn path(&self, mut node: usize) -> Vec<u32> {
        let mut path = Vec::new();
        while node != 0 {
            path.push(self.nodes[node].name);
            node = self.nodes[node].parent as usize;
        }
        path.reverse();
        path
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
            for weight in [Weight::Bytes, Weight::Objects] {
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
        assert!(tree.nodes.iter().enumerate().skip(1).all(|(i, node)| (node.parent as usize) < i));
    }
}
