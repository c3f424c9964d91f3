//! `dunlin init`.
