//! `dunlin roles`: which role each verb needs.
use std::fmt::Write as _;

use crate::api::access::{self, Access, ROUTES};
use crate::api::auth::Scope;
use crate::api::rollouts::RolloutCommand;

/// Method and path, as [`ROUTES`] names them.
type Route = (&'static str, &'static str);

/// A verb with what it asks of the controller.
struct Asks {
    verb: &'static str,
    routes: &'static [Route],
    /// What it tells a rollout, where the role depends on that.
    order: Option<RolloutCommand>,
}

const fn asks(verb: &'static str, routes: &'static [Route]) -> Asks {
    Asks { verb, routes, order: None }
}

const fn orders(verb: &'static str, order: RolloutCommand) -> Asks {
    Asks { verb, routes: &[("POST", "/v1/rollouts/{id}/orders")], order: Some(order) }
}

const RELEASE: Route = ("GET", "/v1/releases/{release}");
const PENDING: Route = ("GET", "/v1/approvals/pending");
const CURRENT: Route = ("GET", "/v1/approvals/current");
const APPROVE: Route = ("POST", "/v1/approvals");
const TARGET: Route = ("GET", "/v1/targets/{file}");
const BLOB: Route = ("GET", "/v1/blobs/{sha256}");
const PROGRAMS: Route = ("GET", "/v1/programs");
const COMMAND: Route = ("POST", "/v1/devices/{id}/commands");
const REPLY: Route = ("GET", "/v1/devices/{id}/replies/{command}");
const STATE: Route = ("PUT", "/v1/devices/{id}/state");
const ROLLOUT: Route = ("GET", "/v1/rollouts/{id}");
const RUN: Route = ("GET", "/v1/runs/{id}");
const RUN_ORDER: Route = ("POST", "/v1/runs/{id}/orders");

/// Every verb that asks the controller.
const VERBS: &[Asks] = &[
    asks("device claim", &[("POST", "/v1/claims"), ("POST", "/v1/batches")]),
    asks("device batch", &[("POST", "/v1/batches")]),
    asks("device batches", &[("GET", "/v1/batches")]),
    asks("device end-batch", &[("DELETE", "/v1/batches/{id}")]),
    asks("device pending", &[("GET", "/v1/admissions")]),
    asks("device approve", &[("POST", "/v1/admissions/{id}/approve")]),
    asks("device reject", &[("POST", "/v1/admissions/{id}/reject")]),
    asks("device claims", &[("GET", "/v1/claims")]),
    asks("device list", &[("GET", "/v1/devices")]),
    asks("device show", &[("GET", "/v1/devices/{id}")]),
    asks("device refused", &[("GET", "/v1/refused")]),
    asks("device explain", &[("GET", "/v1/devices/{device}/explain")]),
    asks("device group", &[("PUT", "/v1/devices/{id}/groups")]),
    asks("device check", &[COMMAND]),
    asks("device rollback", &[COMMAND, REPLY]),
    asks("device retarget", &[COMMAND, REPLY]),
    asks("device retire", &[STATE]),
    asks("device reinstate", &[STATE]),
    asks("device revoke", &[STATE]),
    asks("group list", &[("GET", "/v1/groups")]),
    asks("group create", &[("PUT", "/v1/groups/{id}")]),
    asks("group remove", &[("DELETE", "/v1/groups/{id}")]),
    asks("model push", &[("POST", "/v1/models/{model}/releases")]),
    asks("model list", &[("GET", "/v1/releases")]),
    asks("model show", &[RELEASE]),
    asks("model pending", &[PENDING]),
    asks("model approve", &[PENDING, CURRENT, TARGET, APPROVE]),
    asks("model publish", &[APPROVE]),
    asks("model withdraw", &[CURRENT, APPROVE]),
    asks("model alias", &[("PUT", "/v1/models/{model}/aliases/{alias}")]),
    asks("model aliases", &[("GET", "/v1/models/{model}/aliases")]),
    asks("model blob", &[("POST", "/v1/blobs")]),
    asks("model policy sign", &[("POST", "/v1/policies"), CURRENT, APPROVE]),
    asks("model policy show", &[("GET", "/v1/policies/{task}")]),
    asks("agent push", &[("POST", "/v1/programs")]),
    asks("agent list", &[PROGRAMS]),
    asks("agent approve", &[PROGRAMS, CURRENT, TARGET, APPROVE]),
    asks("agent withdraw", &[PROGRAMS, CURRENT, APPROVE]),
    asks("agent roll-out", &[("POST", "/v1/programs/{release}/orders")]),
    asks("task apply", &[("PUT", "/v1/tasks/{task}")]),
    asks("task list", &[("GET", "/v1/tasks")]),
    asks("task batch", &[RELEASE, BLOB]),
    asks("task show", &[("GET", "/v1/tasks/{task}")]),
    asks("rollout create", &[("POST", "/v1/rollouts")]),
    asks("rollout list", &[("GET", "/v1/rollouts")]),
    asks("rollout status", &[ROLLOUT]),
    asks("rollout plans", &[("GET", "/v1/rollouts/{id}/plans")]),
    asks("rollout watch", &[ROLLOUT]),
    orders("rollout pause", RolloutCommand::Pause),
    orders("rollout resume", RolloutCommand::Resume),
    orders("rollout abort", RolloutCommand::Abort),
    orders("rollout promote", RolloutCommand::Promote),
    orders("rollout approve", RolloutCommand::Approve { wave: 0 }),
    asks("run start", &[("POST", "/v1/runs")]),
    asks("run repeat", &[RUN, ("POST", "/v1/runs")]),
    asks("run list", &[("GET", "/v1/runs")]),
    asks("run show", &[RUN]),
    asks("run cancel", &[RUN_ORDER]),
    asks("run restart", &[RUN_ORDER]),
    asks("alert list", &[("GET", "/v1/alerts")]),
    asks("drift", &[("GET", "/v1/drift")]),
    asks("export", &[("POST", "/v1/export"), TARGET, BLOB]),
    asks("token create", &[("POST", "/v1/tokens")]),
    asks("token list", &[("GET", "/v1/tokens")]),
    asks("token revoke", &[("DELETE", "/v1/tokens/{id}")]),
    asks("audit show", &[("GET", "/v1/audit")]),
    asks("audit head", &[("GET", "/v1/audit/head")]),
];

impl Asks {
    /// The roles of which one is enough: those of the one route that a viewer may not use, if there is one.
    fn roles(&self) -> &'static [Scope] {
        if let Some(order) = &self.order {
            return order.scopes();
        }
        let beyond = |(method, path): &Route| match access::of(method, path) {
            Some(Access::Role(scopes)) if !scopes.contains(&Scope::Viewer) => Some(scopes),
            Some(Access::Role(_) | Access::Everybody | Access::DeviceOrViewer) | None => None,
        };
        self.routes.iter().find_map(beyond).unwrap_or(&[Scope::Viewer])
    }
}

fn names(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" or ")
}

/// The table in Markdown: verbs with the least role, and then the routes that no verb asks. An administrator may all of it.
pub fn page() -> String {
    let mut page = "| verb | role | asks |\n|---|---|---|\n".to_owned();
    for asks in VERBS {
        let routes: Vec<_> = asks.routes.iter().map(|(method, path)| format!("`{method} {path}`")).collect();
        let (verb, roles, routes) = (asks.verb, names(asks.roles()), routes.join(", "));
        writeln!(page, "| `dunlin {verb}` | {roles} | {routes} |").expect("writing to a string");
    }
    page.push_str("\n| no verb asks | who may |\n|---|---|\n");
    for (method, path, access) in ROUTES {
        if VERBS.iter().any(|asks| asks.routes.contains(&(*method, *path))) {
            continue;
        }
        let who = match access {
            Access::Everybody => "everybody; what is secret asks for a secret of its own".to_owned(),
            Access::DeviceOrViewer => "a device, of what is its own; viewer".to_owned(),
            Access::Role(scopes) => names(scopes),
        };
        writeln!(page, "| `{method} {path}` | {who} |").expect("writing to a string");
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Command, CommandFactory};

    use super::*;
    use crate::cli::Cli;

    /// Verbs that ask no controller.
    const OF_FILES: &[&str] = &[
        "init",
        "serve",
        "key ceremony",
        "key import",
        "key sign",
        "key cosign",
        "key renew-root",
        "key rotate",
        "key revoke",
        "key delegate",
        "key seal",
        "key publish",
        "key show",
        "model check",
        "model anchor",
        "audit verify",
        "doctor",
        "openapi",
        "roles",
    ];

    /// Routes of devices, and of what watches the controller.
    const OF_MACHINES: &[Route] = &[
        ("GET", "/v1/health"),
        ("GET", "/v1/image/{file}"),
        ("POST", "/v1/enrol"),
        ("POST", "/v1/renew"),
        ("GET", "/v1/check"),
        ("GET", "/v1/director/{device}/{file}"),
        ("GET", "/metrics"),
    ];

    #[test]
    fn only_machines_ask_what_no_verb_asks() {
        let asked: BTreeSet<&Route> = VERBS.iter().flat_map(|asks| asks.routes).collect();
        let routes = ROUTES.iter().map(|(method, path, _)| (*method, *path));
        let left: Vec<Route> = routes.filter(|route| !asked.contains(route)).collect();
        assert_eq!(left, OF_MACHINES);
    }

    fn leaves(command: &Command, above: &str, found: &mut BTreeSet<String>) {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let name = format!("{above} {}", verb.get_name()).trim().to_owned();
            if verb.has_subcommands() {
                leaves(verb, &name, found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_verb_is_listed() {
        let mut there = BTreeSet::new();
        leaves(&Cli::command(), "", &mut there);
        let listed = VERBS.iter().map(|asks| asks.verb).chain(OF_FILES.iter().copied());
        let listed: BTreeSet<String> = listed.map(str::to_owned).collect();
        assert_eq!(listed, there);
    }

    #[test]
    fn every_route_is_on_the_page_and_no_verb_needs_two_roles() {
        let page = page();
        for (method, path, _) in ROUTES {
            assert!(page.contains(&format!("`{method} {path}`")), "{method} {path}");
        }
        for asks in VERBS {
            let mut needed = BTreeSet::new();
            for route in asks.routes {
                let access = access::of(route.0, route.1);
                assert!(access.is_some_and(|access| access != Access::Everybody), "{route:?}");
                if let Some(Access::Role(scopes)) = access
                    && !scopes.contains(&Scope::Viewer)
                {
                    needed.insert(scopes);
                }
            }
            assert!(needed.len() <= 1, "{}", asks.verb);
        }
        assert!(page.contains("| `dunlin rollout abort` | operator or releaser |"), "{page}");
        assert!(page.contains("| `dunlin rollout promote` | releaser |"), "{page}");
    }
}
