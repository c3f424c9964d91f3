//! The OpenAPI document against what is really sent: every form that it takes from a crate that knows nothing of it, and, by
//! the worlds of the other tests, every answer of theirs.
mod form;
mod samples;

pub(crate) use form::DOCUMENT;
