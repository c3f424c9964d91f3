//! Collecting into maps and sets.

/// For `BTreeMap` and `BTreeSet`, whose `collect` sorts first: a sort for every type of item, which is kilobytes of a
/// device's program each.
pub trait IntoTree: Iterator + Sized {
    /// Like `collect`, but puts in one item after the other.
    fn into_tree<C: Default + Extend<Self::Item>>(self) -> C {
        let mut tree = C::default();
        tree.extend(self);
        tree
    }
}

impl<I: Iterator> IntoTree for I {}
