//! Programs of the agent: taken in as they are, and never run here.
use std::collections::BTreeSet;

use bytes::Bytes;
use dunlin_protocol::{Arch, ClassName, ModelName, PROGRAM_BYTES_MAX, ProgramCustom, SCHEMA};
use dunlin_trust::at_least;
use serde_json::{Value, json};

use super::{Registry, RegistryError};
use crate::clock;
use crate::keys::Addition;
use crate::store::{ProgramRow, Store};

/// First bytes of an executable (ELF).
const ELF: &[u8; 4] = b"\x7fELF";
/// Place of the machine in the header, two bytes, the lower one first in what is built for our architectures.
const MACHINE: std::ops::Range<usize> = 18..20;

/// A program with what is known about it.
#[derive(Debug, Clone)]
pub struct ProgramPush {
    /// Target triple that it was built for.
    pub triple: String,
    /// Release of the agent that it is.
    pub agent: String,
    /// Hardware classes it is for; none means any.
    pub classes: BTreeSet<ClassName>,
    /// The program.
    pub content: Bytes,
}

/// The architecture of an executable, by its header.
pub fn arch_of(program: &[u8]) -> Option<Arch> {
    let machine = program.get(MACHINE).filter(|_| program.starts_with(ELF))?;
    match u16::from_le_bytes(machine.try_into().ok()?) {
        0x3e => Some(Arch::X86_64),
        0xb7 => Some(Arch::Aarch64),
        0x28 => Some(Arch::Armv7),
        0xf3 => Some(Arch::Riscv64),
        _ => None,
    }
}

impl ProgramRow {
    /// The target to list for this program.
    pub fn addition(&self) -> Addition {
        Addition {
            name: self.release.program_name(),
            length: self.blob.length,
            sha256: self.blob.digest,
            custom: serde_json::to_value(&self.custom).expect("what is said of a program is plain data"),
        }
    }
}

impl Registry {
    /// Takes a program in as the next release of the line of its triple. `who` brings it, as in [`Registry::push`].
    ///
    /// # Errors
    /// Its header does not say what is said of it, it is too large, or it is a release already.
    pub async fn push_program(
        &self,
        push: ProgramPush,
        (by, signed): (&str, &str),
    ) -> Result<ProgramRow, RegistryError> {
        let refuse = |text: String| Err(RegistryError::Refused(text));
        let (Some(arch), Ok(line)) = (Arch::of_triple(&push.triple), ModelName::program(&push.triple)) else {
            return refuse(format!("no agents are built for the triple {:?}", push.triple));
        };
        if arch_of(&push.content) != Some(arch) {
            return refuse(format!("by its ELF header, the file is no program for {}", push.triple));
        }
        if push.content.len() as u64 > PROGRAM_BYTES_MAX {
            return refuse(format!("a program has at most {PROGRAM_BYTES_MAX} bytes"));
        }
        if !at_least(&push.agent, "0") {
            return refuse(format!(
                "{:?} does not read as a release of the agent, such as 0.4.1",
                push.agent
            ));
        }
        let blob = self.blobs().put(push.content).await?;
        let custom = ProgramCustom {
            triple: push.triple,
            arch,
            classes: push.classes,
            agent: push.agent,
            schemas: vec![SCHEMA],
        };
        let mut change = self.audit.begin().await?;
        let row = Store::program_add(change.tx(), &line, blob, custom, by, clock::wall_ms()).await?;
        let after = json!({ "release": row.release, "program": row.blob, "agent": row.custom.agent });
        change.commit(signed, "agent.push", Value::Null, after).await?;
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_says_what_it_is_for() {
        let header = |machine: u16| [&ELF[..], &[0; 14], &machine.to_le_bytes(), &[0; 44]].concat();
        assert_eq!(arch_of(&header(183)), Some(Arch::Aarch64));
        assert_eq!(arch_of(&header(40)), Some(Arch::Armv7));
        assert_eq!(arch_of(&header(62)), Some(Arch::X86_64));
        assert_eq!(arch_of(&header(243)), Some(Arch::Riscv64));
        for other in [&header(2)[..], b"#!/bin/sh\nexit 0\n and more", b"", &ELF[..]] {
            assert_eq!(arch_of(other), None);
        }
    }
}
