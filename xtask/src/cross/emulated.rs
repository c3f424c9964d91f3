//! Tests of a target on this machine: behind an emulator where the processor is another.
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::artifact;
use super::build::{self, Built};
use super::toolchain::{Toolchain, home, script};
use crate::command::{MESSAGES, output, run};
use crate::layers;
use crate::programs::{TestProgram, end_to_end_tests, programs};

/// The engine's name, as `layers` has those of the crates that decide; the program of its tests from outside has it too.
const ENGINE: &str = "engine";
/// That of the crate of kernels.
const KERNELS: &str = "kernels";
/// The agent's.
const AGENT: &str = "agent";
/// The engine's tests of answers that have to come out with whatever kernels the processor has.
const TARGETS: &str = "targets::";
/// Its tests of proofs and batches in a child, as emulators do not enforce the limits that those set.
const IN_CHILD: [&str; 2] = ["hostile::", "batch::"];
/// Those others that take a minute or more behind an emulator.
const SLOW: [&str; 2] = ["explain::", "models::a_recurrent_network_begins_every_row_and_every_request_anew"];
/// Cases of each property test that names no number of its own, behind an emulator, which runs twenty times slower; the host
/// runs all of them.
const CASES: &str = "16";

/// The profile that is built fastest.
pub(super) const PROFILE: &str = "emulated";

/// What of a target is tested.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In the target's first variant, without what is slow; in each other one the kernels, and answers that come of them.
    Short,
    /// All there is, kernels and engine in every variant.
    All,
}

/// The test programs of a target, and its agent beside them: built at once, as by itself its dependencies would have other
/// features and be built once more.
fn built(toolchain: &Toolchain<'_>) -> Result<(Vec<TestProgram>, Built)> {
    let mut command = build::cargo(toolchain, "test", PROFILE);
    command.args(["--lib", "--tests"]);
    for name in layers::deciding().chain([KERNELS, ENGINE, AGENT]) {
        command.arg("-p").arg(format!("dunlin-{name}"));
    }
    let messages = output(command.arg("--no-run").args(MESSAGES))?;
    Ok((TestProgram::among(&messages)?, Built::told(toolchain, PROFILE, &messages)?))
}

/// What of a program's tests is run in a variant, the target's first or another one, as words for the program; nothing where it
/// is left out. Crates that decide are tested in the first, as they hold the digests of what must be the same bits on every
/// target; kernels and engine in each, as which kernels run depends on the processor.
fn selected(package: &str, program: &str, scope: Scope, first: bool) -> Option<Vec<&'static str>> {
    let without = |names: &[&'static str]| Some(names.iter().flat_map(|name| ["--skip", *name]).collect());
    match (package, program, scope) {
        (AGENT, ..) | (ENGINE, "allocation", _) => None,
        (ENGINE, ENGINE, Scope::All) => without(&IN_CHILD),
        (ENGINE, ENGINE, Scope::Short) if first => without(&[&IN_CHILD[..], &SLOW].concat()),
        (ENGINE, ENGINE, Scope::Short) => Some(vec![TARGETS]),
        (KERNELS, ..) | (ENGINE, _, Scope::All) => Some(Vec::new()),
        _ => first.then(Vec::new),
    }
}

/// Unit, property and golden tests. Those that start a program of the target themselves are left out, as no emulator is put in
/// front of it.
pub(super) fn units(toolchain: &Toolchain<'_>, scope: Scope) -> Result<()> {
    let (tests, _) = built(toolchain)?;
    knows_boards(toolchain)?;
    let runner = toolchain.runner().unwrap_or_default();
    for (number, variant) in toolchain.target.variants().iter().enumerate() {
        println!("\n-- {} {variant:?}", toolchain.target.triple);
        for program in &tests {
            let package = program.folder.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let Some(words) = selected(package, &program.name, scope, number == 0) else { continue };
            let mut tests = program.behind(&runner);
            tests.args(words).args(["--skip", "program::the_program_"]);
            run(tests.env("PROPTEST_CASES", CASES).envs(variant))?;
        }
    }
    Ok(())
}

/// The emulator knows every processor that a board of the target names.
fn knows_boards(toolchain: &Toolchain<'_>) -> Result<()> {
    let Some(runner) = toolchain.runner() else { return Ok(()) };
    // It ends with a failure after having told.
    let told = Command::new(&runner[0]).args(["-cpu", "help"]).output();
    let told = String::from_utf8(told.with_context(|| format!("could not start {}", runner[0]))?.stdout)?;
    let known: BTreeSet<&str> = told.split_whitespace().collect();
    for processor in crate::boards::emulated_processors(&toolchain.target.triple)? {
        ensure!(known.contains(processor.as_str()), "{} knows no {processor}", runner[0]);
    }
    Ok(())
}

/// Two devices' whole way with an agent of the target against the controller of this machine: enrol, assign, install,
/// infer, report, be taken back. Returns where the agent lies.
pub(super) fn whole_way(toolchain: &Toolchain<'_>) -> Result<PathBuf> {
    let (_, built) = built(toolchain)?;
    println!("{}", artifact::check(toolchain, &built)?);
    let program = built.program;
    let mut tests = end_to_end_tests(&programs()?)?;
    tests.arg("main_loop::");
    let mut command = started_by_itself(toolchain, &program, tests)?;
    if toolchain.runner().is_some() {
        command.env("AGENT_EMULATED", "1");
    }
    run(command.env("AGENT_PROGRAM", &program).envs(&toolchain.target.variants()[0]))?;
    Ok(program)
}

/// The script that makes programs of another machine start by themselves within namespaces of its own. An agent starts its
/// own program again, which no runner in front of it does. Kernels before 6.7 know only one table for all namespaces.
const REGISTER: &str = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && \
    printf '%s' \"$1\" > /proc/sys/fs/binfmt_misc/register && shift && exec \"$@\"";

/// `command`, in whose sight programs of the target can be started like any other.
fn started_by_itself(toolchain: &Toolchain<'_>, program: &Path, command: Command) -> Result<Command> {
    let Some(runner) = toolchain.runner() else { return Ok(command) };
    // It may be that this machine knows such programs already.
    if Command::new(program).arg("--version").output().is_ok_and(|ended| ended.status.success()) {
        return Ok(command);
    }
    let emulator = in_one_word(toolchain, &runner)?;
    let head = std::fs::read(program)?.get(..20).context("a program has a header")?.to_vec();
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", "--mount", "sh", "-c", REGISTER, "sh"]);
    inside.arg(format!(":{}:M::{}:{MASK}:{emulator}:F", toolchain.target.triple, escaped(&head)));
    inside.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        inside.current_dir(folder);
    }
    Ok(inside)
}

/// The emulator as a program that needs no words of its own: the kernel hands it none, and an agent hands the children in
/// which it proves models no variables.
fn in_one_word(toolchain: &Toolchain<'_>, runner: &[String]) -> Result<String> {
    if let [alone] = runner {
        return Ok(output(Command::new("which").arg(alone))?.trim().to_owned());
    }
    let path = home()?.join("bin").join(format!("{}-emulator", toolchain.target.triple));
    script(&path, &format!("#!/bin/sh\nexec {} \"$@\"\n", runner.join(" ")))?;
    Ok(path.display().to_string())
}

/// What of a program's first bytes tells its machine: not the ABI's version and padding, and of its type only that it is
/// a program.
const MASK: &str = r"\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\xff";

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_the_processor_is_tested_in_every_variant() {
        let words = |program, scope, first| selected(ENGINE, program, scope, first);
        for (scope, first) in
            [(Scope::All, true), (Scope::All, false), (Scope::Short, true), (Scope::Short, false)]
        {
            assert_eq!(selected(KERNELS, "dunlin_kernels", scope, first), Some(Vec::new()));
            let answers = words(ENGINE, scope, first).unwrap();
            assert!(answers == [TARGETS] || answers.iter().all(|word| *word != TARGETS));
            assert_eq!(selected("trust", "tuf", scope, first).is_some(), first);
            assert_eq!(words("dunlin_engine", scope, first).is_some(), first || scope == Scope::All);
            assert_eq!(
                (words("allocation", scope, first), selected(AGENT, "dunlin_agent", scope, first)),
                (None, None)
            );
        }
        assert_eq!(words(ENGINE, Scope::Short, false).unwrap(), [TARGETS]);
        let skips =
            |scope, name| words(ENGINE, scope, true).unwrap().windows(2).any(|two| two == ["--skip", name]);
        assert_eq!([Scope::Short, Scope::All].map(|scope| skips(scope, SLOW[0])), [true, false]);
        assert_eq!([Scope::Short, Scope::All].map(|scope| skips(scope, IN_CHILD[0])), [true, true]);
    }
}
