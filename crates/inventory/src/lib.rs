//! The part of the interface of the crate `inventory` that tract is compiled against, over registries that are empty.
//!
//! tract keeps in them what is asked for by name alone: transforms of models, runtimes, settings from the environment.
//! Nothing here asks by name. The real crate enters them before `main` begins, so that a linker has to keep all they lead
//! to, a reader and writer of NNEF among it; here they lead nowhere.
//!
//! ```
//! struct Entry(&'static str);
//! inventory::collect!(Entry);
//! inventory::submit!(Entry("nobody will ask for it"));
//! assert_eq!(inventory::iter::<Entry>().map(|entry| entry.0).count(), 0);
//! ```

use std::convert::Infallible;
use std::iter::{Empty, empty};
use std::marker::PhantomData;
use std::ops::Deref;

/// Declares that entries of a type are collected; there is nothing to do for it.
#[macro_export]
macro_rules! collect {
    ($entry:ty) => {};
}

/// Leaves an entry out.
#[macro_export]
macro_rules! submit {
    ($($entry:tt)*) => {};
}

/// The entries of type `T`, as a value and as a function: none.
#[allow(non_camel_case_types, reason = "the name is the interface")]
#[derive(Debug)]
pub enum iter<T: 'static> {
    /// What is written where entries are asked for.
    iter,
    /// Never made.
    #[doc(hidden)]
    Never(PhantomData<T>, Infallible),
}

pub use self::iter::*;

impl<T> IntoIterator for iter<T> {
    type Item = &'static T;
    type IntoIter = Empty<&'static T>;

    fn into_iter(self) -> Self::IntoIter {
        empty()
    }
}

impl<T> Deref for iter<T> {
    type Target = fn() -> Empty<&'static T>;

    fn deref(&self) -> &Self::Target {
        &(empty as fn() -> Empty<&'static T>)
    }
}
