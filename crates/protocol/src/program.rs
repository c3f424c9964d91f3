//! The agent's own program as a target: what it is called, what its signers say of it, and who is to run it.
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{Arch, ClassName, IdError, ModelName, ReleaseId};

/// First label of the lines that programs are released in.
const FIRST_LABEL: &str = "agent.";
/// What the name of a program's target ends with; a manifest's ends otherwise, so that neither is taken for the other.
const SUFFIX: &str = ".bin";

/// Largest program, bytes: twice a development build of an agent with all its symbols, which is ten times a released one.
pub const PROGRAM_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Times that a program may be given to reach its controller, seconds: at least enough to start and connect on a good link, and
/// nobody is left without a word of it for more than a day.
pub const PROGRAM_REACH_S: RangeInclusive<u64> = 5..=24 * 60 * 60;

/// `custom` of a program's entry in image targets metadata. The target is the program itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramCustom {
    /// Target triple that it was built for.
    pub triple: String,
    /// Architecture of that triple.
    pub arch: Arch,
    /// Hardware classes it is approved for; empty means any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub classes: BTreeSet<ClassName>,
    /// Release of the agent that it is, such as `0.4.1`.
    pub agent: String,
    /// Versions of the message schemas that it speaks.
    pub schemas: Vec<u32>,
}

/// Which program a device is to run as its agent. Agents that do not know of it go on as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramAssignment {
    /// The release.
    pub release: ReleaseId,
    /// How long it has after a start to reach its controller, milliseconds; then it is left again.
    pub reach_ms: u64,
}

impl ModelName {
    /// The line of the agent's programs for a target triple.
    ///
    /// # Errors
    /// The triple holds what no name may.
    pub fn program(triple: &str) -> Result<Self, IdError> {
        alloc::format!("{FIRST_LABEL}{}", triple.replace('_', "-")).parse()
    }

    /// Whether it is a line of programs, so that no model may be called so.
    pub fn is_program(&self) -> bool {
        self.as_str().starts_with(FIRST_LABEL)
    }
}

impl ReleaseId {
    /// The TUF target that is this release of a program.
    pub fn program_name(&self) -> String {
        alloc::format!("{}.{}{SUFFIX}", self.model, self.version)
    }

    /// The release a TUF target name stands for, if it is a program's.
    pub fn from_program_name(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(SUFFIX)?;
        let (model, version) = stem.rsplit_once('.')?;
        let release: Self = alloc::format!("{model}@{version}").parse().ok()?;
        release.model.is_program().then_some(release)
    }
}

impl Arch {
    /// The architecture of a target triple, if agents are built for it.
    pub fn of_triple(triple: &str) -> Option<Self> {
        match triple.split('-').next()? {
            "aarch64" => Some(Self::Aarch64),
            "armv7" => Some(Self::Armv7),
            "x86_64" => Some(Self::X86_64),
            "riscv64gc" => Some(Self::Riscv64),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;
    use crate::{Assignment, TargetCustom};

    #[test]
    fn a_programs_name_is_no_manifests_and_goes_both_ways() {
        let line = ModelName::program("armv7-unknown-linux-musleabihf").unwrap();
        let release = ReleaseId { model: line, version: 3 };
        assert_eq!(release.to_string(), "agent.armv7-unknown-linux-musleabihf@3");
        let name = release.program_name();
        assert_eq!(name, "agent.armv7-unknown-linux-musleabihf.3.bin");
        assert_eq!(ReleaseId::from_program_name(&name), Some(release));
        assert_eq!(ReleaseId::from_target_name(&name), None);
        for other in ["meter.3.bin", "agent.x.3.json", "agent.x.03.bin", "agent.bin", "auto.meter.gbdt.1.bin"]
        {
            assert_eq!(ReleaseId::from_program_name(other), None, "{other}");
        }
        assert_eq!(
            ModelName::program("x86_64-unknown-linux-musl").unwrap().as_str(),
            "agent.x86-64-unknown-linux-musl"
        );
        assert!(ModelName::program("../x").is_err());
    }

    #[test]
    fn every_triple_that_is_built_has_its_architecture() {
        for (triple, arch) in [
            ("aarch64-unknown-linux-musl", Arch::Aarch64),
            ("armv7-unknown-linux-musleabihf", Arch::Armv7),
            ("x86_64-unknown-linux-musl", Arch::X86_64),
            ("riscv64gc-unknown-linux-musl", Arch::Riscv64),
        ] {
            assert_eq!(Arch::of_triple(triple), Some(arch));
        }
        assert_eq!(Arch::of_triple("sparc64-unknown-linux-gnu"), None);
    }

    /// An assignment as an agent before programs reads it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Before {
        device: String,
        generation: u64,
        #[serde(default)]
        correlation: String,
        tasks: Vec<crate::TaskAssignment>,
    }

    fn assignment(program: Option<ProgramAssignment>) -> Assignment {
        Assignment {
            device: "pole-1".parse().unwrap(),
            class: None,
            generation: 4,
            correlation: "g4".into(),
            tasks: vec![],
            program,
        }
    }

    #[test]
    fn an_old_agent_reads_what_a_new_controller_writes() {
        let program =
            ProgramAssignment { release: "agent.aarch64-unknown-linux-musl@2".parse().unwrap(), reach_ms: 9 };
        let bytes = crate::cbor::encode(&assignment(Some(program)));
        let before: Before = crate::cbor::decode(&bytes, 10_000).unwrap();
        assert_eq!((before.device.as_str(), before.generation), ("pole-1", 4));
    }

    #[test]
    fn a_new_agent_reads_what_an_old_controller_writes() {
        let old = Before { device: "pole-1".into(), generation: 4, correlation: "g4".into(), tasks: vec![] };
        let read: Assignment = crate::cbor::decode(&crate::cbor::encode(&old), 10_000).unwrap();
        assert_eq!(read, assignment(None));
        // And without a program nothing new is written.
        assert_eq!(crate::cbor::encode(&read), crate::cbor::encode(&old));
    }

    #[test]
    fn what_is_said_of_a_program_may_grow() {
        #[derive(Serialize)]
        struct Later {
            triple: &'static str,
            arch: Arch,
            agent: &'static str,
            schemas: Vec<u32>,
            of_a_later_release: bool,
        }
        let later = Later {
            triple: "aarch64-unknown-linux-musl",
            arch: Arch::Aarch64,
            agent: "0.9.0",
            schemas: vec![1, 2],
            of_a_later_release: true,
        };
        let read: ProgramCustom = crate::cbor::decode(&crate::cbor::encode(&later), 10_000).unwrap();
        assert_eq!((read.agent.as_str(), read.schemas), ("0.9.0", vec![1, 2]));
        assert!(crate::cbor::decode::<TargetCustom>(&crate::cbor::encode(&later), 10_000).is_err());
    }
}
