//! What the agent's environment has to hold is said in several places.
use std::collections::BTreeSet;

use super::*;

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Words of the form `MALLOC_NAME=VALUE`.
fn settings(text: &str) -> BTreeSet<String> {
    let ends = |c: char| c.is_whitespace() || "`,;\"".contains(c);
    let words = text.split(ends).map(|word| word.trim_start_matches("Environment="));
    words.filter(|word| word.starts_with("MALLOC_") && word.contains('=')).map(ToOwned::to_owned).collect()
}

#[test]
fn unit_init_scripts_and_guide_set_the_allocator_as_it_is_tested() {
    let unit = read("firmware-targets/rootfs/usr/lib/systemd/system/dunlin-agent.service");
    let set: BTreeSet<String> =
        unit.lines().filter_map(|line| line.strip_prefix("Environment=")).map(ToOwned::to_owned).collect();
    assert_eq!(set.len(), 3, "{set:?}");
    for script in ["openrc", "sysv"] {
        let text = read(&format!("firmware-targets/init/{script}/etc/init.d/dunlin-agent"));
        let exported = text.lines().find_map(|line| line.strip_prefix("export ")).unwrap_or_default();
        assert_eq!(settings(exported), set, "{script}");
    }
    assert_eq!(settings(&read("docs/inference.md")), set);
    // The tests of memory that goes back run with them.
    let test = read("agent/src/serve/pack.rs");
    for setting in &set {
        let (name, value) = setting.split_once('=').unwrap();
        assert!(test.contains(&format!("(\"{name}\", \"{value}\")")), "{setting}");
    }
}
