//! Who may use which topic; the same rules as the ACL file for external brokers.
use dunlin_protocol::{DeviceId, Down, Topic};

use crate::identity::CONTROLLER;

/// Whether a client may publish to a topic.
pub fn may_publish(client: &str, topic: &str) -> bool {
    if client == CONTROLLER {
        return matches!(Topic::parse(topic), Some(Topic::Down(..) | Topic::Notice));
    }
    matches!(Topic::parse(topic), Some(Topic::Up(device, _)) if device.as_str() == client)
}

/// Whether a client may subscribe to a filter.
pub fn may_subscribe(client: &str, filter: &str) -> bool {
    if client == CONTROLLER {
        return filter == Topic::all_up_filter();
    }
    let Ok(device) = client.parse::<DeviceId>() else { return false };
    filter == Topic::down_filter(&device)
        || filter == Topic::Notice.to_string()
        || Down::ALL.into_iter().any(|kind| filter == Topic::down(&device, kind).to_string())
}

/// Whether a message on this topic may be retained.
pub fn may_retain(topic: &str) -> bool {
    matches!(Topic::parse(topic), Some(Topic::Up(_, dunlin_protocol::Up::Status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_its_own_topics_and_no_other() {
        for (topic, allowed) in [
            ("dunlin/v1/d/a/up/telemetry", true),
            ("dunlin/v1/d/a/up/status", true),
            ("dunlin/v1/d/a/up/filler-1", false),
            ("dunlin/v1/d/b/up/telemetry", false),
            ("dunlin/v1/d/a/down/cmd", false),
            ("dunlin/v1/d/ab/up/status", false),
            ("dunlin/v1/d/a/up/", false),
            ("dunlin/v1/all/notice", false),
            ("$SYS/broker", false),
        ] {
            assert_eq!(may_publish("a", topic), allowed, "publish {topic}");
        }
        for (filter, allowed) in [
            ("dunlin/v1/d/a/down/+", true),
            ("dunlin/v1/d/a/down/ack", true),
            ("dunlin/v1/all/notice", true),
            ("dunlin/v1/d/+/down/+", false),
            ("dunlin/v1/d/b/down/+", false),
            ("dunlin/v1/d/a/down/#", false),
            ("dunlin/v1/d/a/up/+", false),
            ("$share/g/dunlin/v1/d/a/down/+", false),
            ("dunlin/v1/#", false),
            ("#", false),
        ] {
            assert_eq!(may_subscribe("a", filter), allowed, "subscribe {filter}");
        }
    }

    #[test]
    fn a_hostile_client_id_matches_nothing() {
        for client in ["+", "#", "a/up", "", "../a", "A"] {
            assert!(!may_publish(client, &format!("dunlin/v1/d/{client}/up/status")));
            assert!(!may_subscribe(client, &format!("dunlin/v1/d/{client}/down/+")));
        }
    }

    #[test]
    fn the_controller_speaks_down_and_hears_up() {
        assert!(
            may_publish(CONTROLLER, "dunlin/v1/d/a/down/cmd")
                && may_publish(CONTROLLER, "dunlin/v1/all/notice")
        );
        assert!(!may_publish(CONTROLLER, "dunlin/v1/d/a/up/status"));
        assert!(may_subscribe(CONTROLLER, "dunlin/v1/d/+/up/+") && !may_subscribe(CONTROLLER, "#"));
    }
}
