//! Installing what the controller assigned.
