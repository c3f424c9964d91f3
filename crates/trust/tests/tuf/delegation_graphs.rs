//! The order in which delegated roles are searched, and where the search ends (§5.6.7).
use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, RepoFiles};
use dunlin_trust::write::{self, DelegationSpec};
use dunlin_trust::{DELEGATIONS_MAX, Lookup, RepoKind, TrustedRepo, sha256};
use serde_json::{Value, json};

use super::forge::{Forge, LATER_MS, now, role, sign, target};

/// An edge: who delegates, to whom, for which patterns, and whether the search ends there.
type Edge<'a> = (&'a str, &'a str, &'a [&'a str], bool);

struct Graph {
    forge: Forge,
    files: BTreeMap<String, Vec<u8>>,
}

impl Graph {
    /// Every role that an edge names, each listing the target if it is in `holders`.
    fn new(edges: &[Edge<'_>], holders: &[&str], name: &str) -> Self {
        let forge = Forge::new(RepoKind::Image);
        let mut roles: Vec<&str> = vec!["targets"];
        roles.extend(edges.iter().map(|(_, to, ..)| *to));
        let mut files = BTreeMap::new();
        for of in roles {
            let delegations: Vec<DelegationSpec> = edges
                .iter()
                .filter(|(from, ..)| *from == of)
                .map(|(_, to, paths, terminating)| DelegationSpec {
                    name: (*to).to_owned(),
                    role: role(&[&forge.retrained], 1),
                    paths: paths.iter().map(|path| (*path).to_owned()).collect(),
                    terminating: *terminating,
                })
                .collect();
            let listed: BTreeMap<_, _> = holders
                .iter()
                .filter(|holder| **holder == of)
                .map(|holder| (name.to_owned(), target(holder.as_bytes(), Value::Null)))
                .collect();
            let value = write::targets(1, LATER_MS, &listed, &delegations, Value::Null).unwrap();
            let signers =
                if of == "targets" { forge.targets.iter().collect() } else { vec![&forge.retrained] };
            files.insert(of.to_owned(), sign(&value, &signers));
        }
        Self { forge, files }
    }

    fn snapshot(&self) -> Vec<u8> {
        let roles = self.files.keys().map(|role| (role.clone(), 1)).collect();
        sign(&write::snapshot(1, LATER_MS, &roles).unwrap(), &[&self.forge.snapshot])
    }

    fn refreshed(&self) -> TrustedRepo {
        let mut repo = self.forge.pinned();
        repo.step_timestamp(&self.forge.timestamp_file(), now()).unwrap();
        repo.step_snapshot(&self.snapshot(), now()).unwrap();
        repo.step_targets(&self.files["targets"], now()).unwrap();
        repo
    }

    /// Roles in the order in which the search asks for them, and the role that it finds the target in.
    fn search(&self, name: &str) -> (Vec<String>, Option<String>) {
        let (mut repo, mut asked) = (self.refreshed(), Vec::new());
        loop {
            let (delegator, needed) = match repo.lookup(name) {
                Lookup::Found { role, .. } => return (asked, Some(role.to_owned())),
                Lookup::Absent => return (asked, None),
                Lookup::Needs { delegator, role, .. } => (delegator.to_owned(), role.to_owned()),
            };
            repo.step_delegated(&delegator, &needed, &self.files[&needed], now()).unwrap();
            asked.push(needed);
        }
    }
}

#[track_caller]
fn check(edges: &[Edge<'_>], holders: &[&str], asked: &[&str], found: Option<&str>) {
    let graph = Graph::new(edges, holders, "x");
    let (order, role) = graph.search("x");
    assert_eq!(order, asked);
    assert_eq!(role.as_deref(), found);
}

const ALL: &[&str] = &["*"];

#[test]
fn the_search_is_pre_order_and_depth_first() {
    let tree = [
        ("targets", "a", ALL, false),
        ("targets", "b", ALL, false),
        ("a", "a1", ALL, false),
        ("a", "a2", ALL, false),
        ("b", "b1", ALL, false),
        ("a1", "deep", ALL, false),
    ];
    check(&tree, &[], &["a", "a1", "deep", "a2", "b", "b1"], None);
    check(&tree, &["b", "a2"], &["a", "a1", "deep", "a2"], Some("a2"));
    check(&tree, &["targets", "a"], &[], Some("targets"));
}

#[test]
fn roles_that_do_not_cover_the_name_are_not_asked_for() {
    let edges = [
        ("targets", "other", &["y", "x/*"][..], false),
        ("targets", "several", &["y", "?"], false),
        ("several", "inner", &["xx"], false),
    ];
    check(&edges, &["other", "inner"], &["several"], None);
    check(&edges, &["several"], &["several"], Some("several"));
}

#[test]
fn a_terminating_role_ends_the_search_below_it_and_beside_it() {
    let beside = [("targets", "a", ALL, true), ("targets", "b", ALL, false)];
    check(&beside, &["b"], &["a"], None);
    let below = [
        ("targets", "a", ALL, true),
        ("a", "a1", ALL, false),
        ("a", "a2", ALL, false),
        ("targets", "b", ALL, false),
    ];
    check(&below, &["a2", "b"], &["a", "a1", "a2"], Some("a2"));
    // Only a role that covers the name ends anything.
    let elsewhere = [("targets", "a", &["y"][..], true), ("targets", "b", ALL, false)];
    check(&elsewhere, &["b"], &["b"], Some("b"));
    let later = [("targets", "a", ALL, false), ("a", "a1", ALL, true), ("targets", "b", ALL, false)];
    check(&later, &["b"], &["a", "a1"], None);
}

#[test]
fn circles_end_and_a_role_is_asked_for_once() {
    let circle = [
        ("targets", "a", ALL, false),
        ("targets", "b", ALL, false),
        ("a", "b", ALL, false),
        ("b", "a", ALL, false),
        ("b", "b", ALL, false),
    ];
    check(&circle, &[], &["a", "b"], None);
    let diamond = [
        ("targets", "a", ALL, false),
        ("targets", "b", ALL, false),
        ("a", "c", ALL, false),
        ("b", "c", ALL, false),
    ];
    check(&diamond, &[], &["a", "c", "b"], None);
}

/// A hostile delegation tree costs at most [`DELEGATIONS_MAX`] roles, the top-level one included.
#[test]
fn a_long_chain_and_a_wide_fan_are_cut() {
    let names: Vec<String> = (0..DELEGATIONS_MAX + 8).map(|i| format!("r{i:02}")).collect();
    let mut chain: Vec<Edge<'_>> = vec![("targets", &names[0], ALL, false)];
    chain.extend(names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str(), ALL, false)));
    let fan: Vec<Edge<'_>> = names.iter().map(|name| ("targets", name.as_str(), ALL, false)).collect();
    for edges in [chain, fan] {
        let within: Vec<&str> = names.iter().take(DELEGATIONS_MAX - 1).map(String::as_str).collect();
        check(&edges, &[&names[DELEGATIONS_MAX - 1]], &within, None);
        check(&edges, &[within[within.len() - 1]], &within, Some(within[within.len() - 1]));
    }
}

#[test]
fn a_role_that_the_snapshot_does_not_list_hides_what_ranks_below_it() {
    let mut graph = Graph::new(&[("targets", "a", ALL, false), ("targets", "b", ALL, false)], &["b"], "x");
    graph.files.remove("a");
    assert_eq!(graph.search("x"), (vec![], None));
}

#[test]
fn path_hash_prefixes_share_names_out_by_their_digest() {
    let digest = sha256(b"x").to_string();
    for (prefixes, covered) in [
        (json!([digest[..2]]), true),
        (json!(["zz", digest[..5]]), true),
        (json!([digest]), true),
        (json!([format!("{digest}0")]), false),
        (json!([]), false),
        (json!([&sha256(b"y").to_string()[..4]]), false),
    ] {
        let mut graph = Graph::new(&[("targets", "bin", ALL, false)], &["bin"], "x");
        let mut value = write::signed_value(&graph.files["targets"]).unwrap();
        let delegation = &mut value["delegations"]["roles"][0];
        delegation.as_object_mut().unwrap().remove("paths");
        delegation["path_hash_prefixes"] = prefixes.clone();
        let file = sign(&value, &graph.forge.targets.iter().collect::<Vec<_>>());
        graph.files.insert("targets".to_owned(), file);
        assert_eq!(graph.search("x").1.is_some(), covered, "{prefixes}");
    }
}

/// The same role under two delegators, of which only one names its key: each verifies it by its own.
#[test]
fn a_role_is_verified_by_the_delegator_that_led_to_it() {
    let edges = [
        ("targets", "a", ALL, false),
        ("targets", "b", ALL, false),
        ("a", "c", ALL, false),
        ("b", "c", ALL, false),
    ];
    let mut graph = Graph::new(&edges, &["c"], "x");
    let mut value = write::signed_value(&graph.files["a"]).unwrap();
    let stranger = super::forge::key();
    use dunlin_trust::Signer;
    value["delegations"]["keys"] = json!({ stranger.key_id(): stranger.key().declared() });
    value["delegations"]["roles"][0]["keyids"] = json!([stranger.key_id()]);
    graph.files.insert("a".to_owned(), sign(&value, &[&graph.forge.retrained]));
    let mut repo = graph.refreshed();
    repo.step_delegated("targets", "a", &graph.files["a"], now()).unwrap();
    assert!(repo.step_delegated("a", "c", &graph.files["c"], now()).is_err());
    assert!(matches!(repo.lookup("x"), Lookup::Needs { delegator: "a", role: "c", .. }));
}

/// All files at once, as devices take them.
#[test]
fn a_whole_tree_is_taken_or_nothing_of_it() {
    let edges = [("targets", "a", ALL, false), ("a", "b", ALL, false)];
    let graph = Graph::new(&edges, &["b"], "x");
    let delegated = |names: &[&str]| RepoFiles {
        snapshot: Some(Bytes(graph.snapshot())),
        targets: Some(Bytes(graph.files["targets"].clone())),
        delegated: names.iter().map(|name| ((*name).to_owned(), Bytes(graph.files[*name].clone()))).collect(),
        ..graph.forge.files()
    };
    let mut repo = graph.forge.pinned();
    assert!(repo.update(&delegated(&["a"]), now()).is_err());
    assert_eq!(repo.versions().timestamp, 0);
    repo.update(&delegated(&["a", "b"]), now()).unwrap();
    assert_eq!(repo.target("x").unwrap().role, "b");
}
