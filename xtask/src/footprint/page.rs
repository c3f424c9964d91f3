//! The page: how it was measured, and for each target the figures beside their bars.
use std::fmt::Write as _;

use super::{Known, Run, Size};
use crate::board::{INSTRUCTION_NS, Window};

/// What begins the triples of machines whose programs have bars of their own, in docs/bench.md.
const PC: &str = "x86_64-";
/// Most bytes of the agent.
const PROGRAM_BYTES: f64 = 12e6;
/// Most bytes of its package.
const PACKAGE_BYTES: f64 = 4e6;
/// Most memory without a model, KiB.
const PSS_KIB: f64 = 6.0 * 1024.0;
/// Most processor time of an idle agent, per cent of a core.
const CPU_PERCENT: f64 = 0.5;
/// Most bytes that an idle agent writes in an hour.
const WRITTEN_HOUR: f64 = 1e6;

/// The head of every table.
pub(super) const HEAD: &str = "| figure | measured | bar |";

const METHOD: &str = "\
# Footprint

What the released agent takes of a small board. `cargo xtask bench --footprint` measures it and writes this page; it
judges nothing: a missed bar stands here as missed.

```sh
cargo xtask bench --footprint                               # builds every released target, measures on every virtual board
cargo xtask bench --footprint --board qemu-virt-aarch64     # on one; what is known of the others is kept
cargo xtask bench --footprint --released --programs DIR     # with agents of `cargo xtask cross dist` and a controller that is there
cargo xtask bench --footprint --page-only                   # measures nothing; the page anew from docs/footprint, a file for each target
```

## Method

Sizes are those of the stripped static agent, built alone (`-p dunlin-agent`) in the profile `dist`; `edge` is the feature
set that is released, `full` has everything. The package is Debian's, of `edge`, pressed by xz.

Everything else is measured within a virtual board (docs/board.md): `qemu-system`, Debian's kernel for virtual machines,
busybox in memory, the agent of the set `edge` and its state on an ext4 disk. The agent has the settings that are installed, but
for the bound on the time of an answer. The controller runs on the machine that emulates.

1. The board is switched on, enrols and connects. A fifth of a window goes by.
2. *Idle*: windows one after the other, without a model, asked nothing; how many minutes they are together stands above each table. An idle agent with
   the settings that are installed commits something every 25 minutes.
3. One small model is assigned, proved and asked until it is there to stay. A fifth of a window goes by. *With a model*: one window, asked
   nothing.
4. The power is cut and the board switched on again. *First answer*: from the start of the agent's process until a question
   that is asked again and again from within the board has been answered by the model.

Every 15 s the board prints what its kernel tells, and nobody else asks it anything:

* memory: PSS of all processes of the agent (`/proc/PID/smaps_rollup`), the most that a look saw. The program file lies on the
  disk, as on a device: of it in memory is what was read, and mapped what lies around each page that is used;
* processor: user and system time of the agent's processes (`/proc/PID/stat`);
* disk: sectors written to the disk, by the agent and by ext4 on its behalf (`/proc/diskstats`), synced or written back by the kernel
  in its own time, which is not put off as where power is cut;
* network: bytes of the interface in both directions, frames, TCP and TLS included (`/proc/net/dev`);
* what is left of the board's memory (`MemAvailable`), the least that a look saw.

Hours and days are projected from the windows. A window in which the agent lost its session ends the measurement: the machine that emulates
was too busy.

The program for x86-64 may be loaded anywhere, as Rust has it for that target: its 0.6 MiB of pointers are written when it is, and are memory of
its own. Those for ARM lie at fixed addresses, and of their pointers in memory is what was read.
";

/// The whole page.
pub(super) fn text(known: &[Known]) -> String {
    let mut page = METHOD.to_owned();
    write!(
        page,
        "\n**Processor times and the first answer are emulated.** The board's clock goes by its instructions, {INSTRUCTION_NS} ns each, however busy \
         the machine is that emulates: what stands here is a count of instructions, as a core would need that does {} million a second, \
         whatever they are. Processors of boards do more of most, and fewer while they wait for memory. It compares with another run of \
         this command, and with nothing else.\n",
        1000 / INSTRUCTION_NS
    )
    .expect("writing to a string");
    for target in known {
        target_text(target, &mut page).expect("writing to a string");
    }
    page
}

fn target_text(target: &Known, page: &mut String) -> std::fmt::Result {
    writeln!(page, "\n## {}\n", target.triple)?;
    match &target.run {
        Some(run) => {
            let (measured, commit) = (&run.measured, &run.commit);
            writeln!(
                page,
                "On `{}` with {} MiB, {}, Linux {}, windows of {} min, idle for {:.0} min, agent of commit {commit}. The machine: {}.\n",
                run.board,
                measured.memory_mib,
                measured.emulator,
                measured.kernel,
                run.minutes,
                measured.idle.iter().map(|window| window.seconds).sum::<f64>() / 60.0,
                run.machine
            )?;
        }
        None => writeln!(page, "Not measured on a board.\n")?,
    }
    let sizes = &target.sizes;
    let measured = target.run.as_ref().map(|run| &run.commit);
    let sized = sizes.edge.as_ref().map(|size| &size.commit);
    if let Some(commit) = sized.filter(|commit| measured != Some(*commit)) {
        writeln!(page, "Sizes are those of commit {commit}.\n")?;
    }
    writeln!(page, "{HEAD}\n|---|---|---|")?;
    let is_pc = target.triple.starts_with(PC);
    let mut row = |figure: &str, measured: Option<String>, bar: String| {
        writeln!(page, "| {figure} | {} | {bar} |", measured.as_deref().unwrap_or("not built"))
    };
    let bar = |value: Option<u64>, most: f64, text: &str| match value {
        _ if is_pc => String::new(),
        Some(value) => held(value as f64, most, text),
        None => text.to_owned(),
    };
    let edge = sizes.edge.as_ref().map(|size| size.bytes);
    row("agent, `edge`", edge.map(megabytes), bar(edge, PROGRAM_BYTES, "≤ 12 MB"))?;
    let full = sizes.full.as_ref().map(|Size { bytes, commit }| {
        let other = if sized == Some(commit) { String::new() } else { format!(", of commit {commit}") };
        format!("{}{other}", megabytes(*bytes))
    });
    row("agent, `full`", full, String::new())?;
    row("package, `edge`", sizes.package.map(megabytes), bar(sizes.package, PACKAGE_BYTES, "≤ 4 MB"))?;
    target.run.as_ref().map_or(Ok(()), |run| run_rows(run, page))
}

/// What was measured on the board.
fn run_rows(run: &Run, page: &mut String) -> std::fmt::Result {
    let mut row =
        |figure: &str, measured: String, bar: String| writeln!(page, "| {figure} | {measured} | {bar} |");
    let measured = &run.measured;
    let with_model = &measured.with_model;
    let Some(idle) = Window::joined(&measured.idle) else { return Ok(()) };
    let mebibytes = |kib: u64| format!("{:.2} MiB", kib as f64 / 1024.0);
    row("PSS idle, no model", mebibytes(idle.pss_kib), held(idle.pss_kib as f64, PSS_KIB, "≤ 6 MiB"))?;
    row("PSS with a model", mebibytes(with_model.pss_kib), String::new())?;
    row("first answer, emulated", format!("{:.1} s", measured.first_answer_s), String::new())?;
    for (name, window, bar) in [
        ("idle", &idle, held(idle.cpu_percent(), CPU_PERCENT, "≤ 0.5 %")),
        ("with a model", with_model, String::new()),
    ] {
        row(
            &format!("processor {name}, emulated"),
            format!("{:.2} % of one core", window.cpu_percent()),
            bar,
        )?;
    }
    for (name, window, bar) in [
        ("idle", &idle, held(idle.written_hour(), WRITTEN_HOUR, "≤ 1 MB an hour")),
        ("with a model", with_model, String::new()),
    ] {
        let [hour, day] = [window.written_hour(), window.written_day()].map(|bytes| bytes / 1e6);
        row(&format!("disk writes {name}"), format!("{hour:.3} MB an hour, {day:.2} MB a day"), bar)?;
    }
    for (name, window) in [("idle", &idle), ("with a model", with_model)] {
        row(
            &format!("network {name}"),
            format!("{:.2} MB a day", window.network_day() / 1e6),
            String::new(),
        )?;
    }
    let free = idle.free_kib.min(with_model.free_kib);
    let board = format!("{} MiB, of which {} were left", measured.memory_mib, mebibytes(free));
    row("memory of the whole board", board, "what it was started with".to_owned())
}

/// A bar, and whether it is met.
fn held(value: f64, most: f64, text: &str) -> String {
    format!("{text}, {}", if value <= most { "met" } else { "**missed**" })
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Measured;
    use crate::footprint::Sizes;

    fn size(bytes: u64, commit: &str) -> Size {
        Size { bytes, commit: commit.to_owned() }
    }

    fn known(pss_kib: u64) -> Known {
        let window = Window {
            seconds: 600.0,
            pss_kib,
            cpu_s: 4.0,
            written_bytes: 100_000,
            network_bytes: 10_000,
            free_kib: 20_480,
        };
        Known {
            triple: "m68k-unknown-linux-musl".to_owned(),
            sizes: Sizes { edge: Some(size(12_000_000, "abc")), full: None, package: Some(4_000_001) },
            run: Some(Run {
                board: "falcon".to_owned(),
                minutes: 10,
                commit: "abc".to_owned(),
                machine: "a machine".to_owned(),
                measured: Measured {
                    memory_mib: 96,
                    emulator: "qemu 1".to_owned(),
                    kernel: "6.1".to_owned(),
                    idle: vec![window, Window { written_bytes: 0, ..window }],
                    with_model: window,
                    first_answer_s: 2.5,
                },
            }),
        }
    }

    #[test]
    fn every_figure_stands_beside_its_bar_whether_it_is_met_or_not() {
        let page = text(&[known(6 * 1024 + 1)]);
        for line in [
            "## m68k-unknown-linux-musl",
            "| agent, `edge` | 12.00 MB | ≤ 12 MB, met |",
            "| agent, `full` | not built |  |",
            "| package, `edge` | 4.00 MB | ≤ 4 MB, **missed** |",
            "| PSS idle, no model | 6.00 MiB | ≤ 6 MiB, **missed** |",
            "On `falcon` with 96 MiB, qemu 1, Linux 6.1, windows of 10 min, idle for 20 min, agent of commit abc. The machine: a machine.",
            "| first answer, emulated | 2.5 s |  |",
            "| processor idle, emulated | 0.67 % of one core | ≤ 0.5 %, **missed** |",
            "| disk writes idle | 0.300 MB an hour, 7.20 MB a day | ≤ 1 MB an hour, met |",
            "| disk writes with a model | 0.600 MB an hour, 14.40 MB a day |  |",
            "| network idle | 1.44 MB a day |  |",
            "| memory of the whole board | 96 MiB, of which 20.00 MiB were left | what it was started with |",
        ] {
            assert!(page.lines().any(|other| other == line), "no {line:?} in\n{page}");
        }
        assert!(text(&[known(6 * 1024)]).contains("| PSS idle, no model | 6.00 MiB | ≤ 6 MiB, met |"));
    }

    #[test]
    fn a_program_of_another_commit_than_the_first_says_so() {
        let row = |commit: &str| {
            let mut known = known(1);
            known.sizes.full = Some(size(13_000_000, commit));
            let page = text(&[known]);
            page.lines().find(|line| line.starts_with("| agent, `full`")).unwrap().to_owned()
        };
        assert_eq!(row("abc"), "| agent, `full` | 13.00 MB |  |");
        assert_eq!(row("def"), "| agent, `full` | 13.00 MB, of commit def |  |");
    }

    #[test]
    fn a_target_without_a_board_has_a_table_of_its_sizes_and_their_commit() {
        let page = text(&[Known { run: None, ..known(1) }]);
        assert!(page.contains("Not measured on a board.\n\nSizes are those of commit abc."));
        assert!(page.contains(HEAD) && !page.contains("PSS idle, no model |"));
    }

    #[test]
    fn the_bars_of_sizes_are_those_of_boards() {
        let page = text(&[Known { triple: "x86_64-unknown-linux-gnu".to_owned(), ..known(1) }]);
        assert!(page.contains("| agent, `edge` | 12.00 MB |  |"));
        assert!(page.contains("≤ 6 MiB, met") && !page.contains("12 MB,") && !page.contains("≤ 4 MB"));
    }
}
