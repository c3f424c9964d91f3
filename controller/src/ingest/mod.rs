//! What devices send, on its way into the database.
