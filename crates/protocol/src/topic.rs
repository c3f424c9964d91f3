use core::fmt;

use crate::DeviceId;

/// Root of every topic; a breaking change of the messages is a new root.
const ROOT: &str = "dunlin/v1";

/// What a device publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Up {
    /// Retained presence; also the will.
    Status,
    /// Windows.
    Telemetry,
    /// Installed releases, outcomes of updates, indicators of attack.
    Report,
    /// Samples for labelling and training, where the task's policy allows them.
    Samples,
    /// Answers to commands.
    Reply,
}

/// What a device receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Down {
    /// A hint that a new assignment exists, or the metadata files themselves.
    Desired,
    /// A command.
    Cmd,
    /// Which records the controller has committed.
    Ack,
}

/// Every topic of the protocol; the one place that builds and parses them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Device to controller.
    Up(DeviceId, Up),
    /// Controller to device.
    Down(DeviceId, Down),
    /// Controller to all; unsigned, so it can only cause a check.
    Notice,
}

impl Up {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 5] = [Self::Status, Self::Telemetry, Self::Report, Self::Samples, Self::Reply];

    fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Telemetry => "telemetry",
            Self::Report => "report",
            Self::Samples => "samples",
            Self::Reply => "reply",
        }
    }
}

impl Down {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 3] = [Self::Desired, Self::Cmd, Self::Ack];

    fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Cmd => "cmd",
            Self::Ack => "ack",
        }
    }
}

impl Topic {
    /// A device's upward topic.
    pub fn up(device: &DeviceId, kind: Up) -> Self {
        Self::Up(device.clone(), kind)
    }

    /// A device's downward topic.
    pub fn down(device: &DeviceId, kind: Down) -> Self {
        Self::Down(device.clone(), kind)
    }

    /// The topic a text names, if it is one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(ROOT)?.strip_prefix('/')?;
        if rest == "all/notice" {
            return Some(Self::Notice);
        }
        let mut levels = rest.strip_prefix("d/")?.split('/');
        let (device, direction, kind) = (levels.next()?.parse().ok()?, levels.next()?, levels.next()?);
        if levels.next().is_some() {
            return None;
        }
        match direction {
            "up" => Up::ALL.into_iter().find(|up| up.as_str() == kind).map(|up| Self::Up(device, up)),
            "down" => {
                Down::ALL.into_iter().find(|down| down.as_str() == kind).map(|down| Self::Down(device, down))
            }
            _ => None,
        }
    }

    /// The filter by which a controller hears every device.
    pub fn all_up_filter() -> &'static str {
        "dunlin/v1/d/+/up/+"
    }

    /// The filter by which a device hears everything addressed to it.
    pub fn down_filter(device: &DeviceId) -> alloc::string::String {
        alloc::format!("{ROOT}/d/{device}/down/+")
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(device, kind) => write!(f, "{ROOT}/d/{device}/up/{}", kind.as_str()),
            Self::Down(device, kind) => write!(f, "{ROOT}/d/{device}/down/{}", kind.as_str()),
            Self::Notice => write!(f, "{ROOT}/all/notice"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn every_topic_round_trips() {
        let device: DeviceId = "d1".parse().unwrap();
        let ups = Up::ALL.map(|kind| Topic::up(&device, kind));
        let downs = Down::ALL.map(|kind| Topic::down(&device, kind));
        for topic in ups.into_iter().chain(downs).chain([Topic::Notice]) {
            assert_eq!(Topic::parse(&topic.to_string()), Some(topic));
        }
    }

    #[test]
    fn foreign_topics_are_refused() {
        for bad in [
            "dunlin/v1/d/+/up/status",
            "dunlin/v1/d/a/up/status/x",
            "dunlin/v2/d/a/up/status",
            "dunlin/v1/d/a/up/nope",
            "dunlin/v1/d/a/up",
            "$SYS/x",
        ] {
            assert_eq!(Topic::parse(bad), None, "{bad}");
        }
    }
}
