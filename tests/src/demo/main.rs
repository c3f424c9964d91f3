//! placeholder while parts are built
fn main() {}
