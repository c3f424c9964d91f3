//! Switches that turn one defence off, so that a test can show that the check of this defence is able to fail.
//!
//! Without the Cargo feature `weaken`, which nothing enables by itself, [`off`] is the constant `false` and the compiler
//! removes what hangs on it. With the feature, the environment variable [`VARIABLE`] names what is off. Only programs
//! that say so in their name and on standard error are built that way.

/// Something a check of the demonstration or of an end-to-end test stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// A fetched file is compared with its signed digest.
    Digest,
    /// Metadata below the version seen last is refused.
    MetadataVersion,
    /// An assignment below the generation seen last is refused.
    Generation,
    /// An assignment that names another device is refused.
    AssignedDevice,
    /// A release that the image repository does not hold is refused.
    Approval,
    /// A message for another device is refused.
    MessageDevice,
    /// A message that was seen before is refused.
    MessageNumber,
    /// A release that is worse than what it replaces stops its rollout.
    Gate,
    /// A rollout opens to a canary first.
    Waves,
    /// The devices of a stopped rollout return to what they ran before.
    Return,
    /// A retrained model that shows no gain is not deployed.
    Gain,
    /// A record leaves the device's spool on the controller's acknowledgement alone.
    Acknowledgement,
    /// A record that arrives twice is stored once.
    Once,
    /// A download that was cut goes on where it was.
    Resume,
    /// Inputs that moved away from the reference count as drifted.
    Drift,
    /// A schedule that is due starts a run.
    Schedule,
    /// Devices of groups that retraining leaves out are not learnt from.
    Exclusion,
    /// Devices of groups that are held are in no rollout.
    Holding,
    /// A controller goes on with the rollouts that were open when its predecessor died.
    Takeover,
    /// What one model may cost on a board is bounded.
    Budgets,
    /// A trigger that fires starts a run.
    Trigger,
    /// Inputs count as drifted only beyond what chance does to them.
    DriftEffect,
    /// Why a device runs what it runs is written down.
    Explain,
    /// A retrained model is released in a line of the task that it was made for.
    Confine,
    /// A device that went down in the middle of an update takes it up again.
    Strikes,
}

impl Defence {
    /// Every defence that has a switch.
    pub const ALL: [Self; 25] = [
        Self::Digest,
        Self::MetadataVersion,
        Self::Generation,
        Self::AssignedDevice,
        Self::Approval,
        Self::MessageDevice,
        Self::MessageNumber,
        Self::Gate,
        Self::Waves,
        Self::Return,
        Self::Gain,
        Self::Acknowledgement,
        Self::Once,
        Self::Resume,
        Self::Drift,
        Self::Schedule,
        Self::Exclusion,
        Self::Holding,
        Self::Takeover,
        Self::Budgets,
        Self::Trigger,
        Self::DriftEffect,
        Self::Explain,
        Self::Confine,
        Self::Strikes,
    ];

    /// Its name in [`VARIABLE`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::MetadataVersion => "metadata_version",
            Self::Generation => "generation",
            Self::AssignedDevice => "assigned_device",
            Self::Approval => "approval",
            Self::MessageDevice => "message_device",
            Self::MessageNumber => "message_number",
            Self::Gate => "gate",
            Self::Waves => "waves",
            Self::Return => "return",
            Self::Gain => "gain",
            Self::Acknowledgement => "acknowledgement",
            Self::Once => "once",
            Self::Resume => "resume",
            Self::Drift => "drift",
            Self::Schedule => "schedule",
            Self::Exclusion => "exclusion",
            Self::Holding => "holding",
            Self::Takeover => "takeover",
            Self::Budgets => "budgets",
            Self::Trigger => "trigger",
            Self::DriftEffect => "drift_effect",
            Self::Explain => "explain",
            Self::Confine => "confine",
            Self::Strikes => "strikes",
        }
    }
}

/// Names of the defences that are off, with commas between them.
pub const VARIABLE: &str = "DUNLIN_WEAKEN";

/// Whether a defence is switched off; never, in an ordinary build.
#[cfg(not(feature = "weaken"))]
pub const fn off(_defence: Defence) -> bool {
    false
}

#[cfg(feature = "weaken")]
pub use switches::{announce, off};

#[cfg(feature = "weaken")]
mod switches {
    extern crate std;

    use alloc::string::String;
    use alloc::vec::Vec;
    use std::sync::OnceLock;

    use super::{Defence, VARIABLE};

    static OFF: OnceLock<Vec<Defence>> = OnceLock::new();

    /// Whether a defence is switched off; never, in a program that did not [`announce`] it.
    pub fn off(defence: Defence) -> bool {
        OFF.get().is_some_and(|off| off.contains(&defence))
    }

    /// Reads the switches, and tells on standard error that this is no program to run anywhere but in a test. An ordinary
    /// program does not call this, so that it has all its defences even if it was built with the feature.
    ///
    /// # Panics
    /// [`VARIABLE`] names a defence that does not exist: a misspelt name would leave one on, and the test would not learn
    /// why.
    pub fn announce() {
        let names: String = std::env::var(VARIABLE).unwrap_or_default();
        let known = |name: &str| Defence::ALL.into_iter().find(|defence| defence.name() == name);
        let names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        std::eprintln!("TEST BUILD, NEVER DEPLOY IT: it can switch its own defences off; now off: {names:?}");
        OFF.get_or_init(|| {
            let defence =
                |name: &&str| known(name).unwrap_or_else(|| panic!("{VARIABLE}: no defence {name:?}"));
            names.iter().map(defence).collect()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        for (i, one) in Defence::ALL.into_iter().enumerate() {
            assert!(Defence::ALL[i + 1..].iter().all(|other| other.name() != one.name()), "{one:?}");
        }
    }

    #[test]
    fn a_program_that_does_not_announce_it_has_every_defence() {
        assert!(Defence::ALL.into_iter().all(|defence| !off(defence)));
    }

    #[cfg(not(feature = "weaken"))]
    #[test]
    fn in_an_ordinary_build_the_compiler_knows_that() {
        const { assert!(!off(Defence::Digest)) };
    }
}
