//! The project's only automation: `cargo xtask {demo, test, bench, parity, soak, fuzz, cuts, board, tidy, docs, cross, package, versions}`.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod bench;
mod board;
mod boards;
mod command;
mod cross;
mod cuts;
mod demo;
mod docs;
mod footprint;
mod fuzz;
mod install;
mod layers;
mod package;
mod parity;
mod programs;
mod soak;
mod test;
mod tidy;
mod versions;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Dunlin's automation")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build everything and watch a fleet do the whole loop
    Demo(demo::Options),
    /// Set up and run every check and test, with minutes per stage
    Test(test::Options),
    /// Measure sizes, speeds and memory; print them and write JSON
    Bench(bench::Options),
    /// Compare models of other exporters with ONNX Runtime; write docs/parity.md
    Parity(parity::Options),
    /// Ask ten million times while line-ups are swapped every second
    Soak(soak::Options),
    /// Bend inputs of everything that reads what others wrote
    Fuzz(fuzz::Options),
    /// Cut updates at every system call that changes the agent's state
    Cuts(cuts::Options),
    /// Cut the power of a virtual board in the middle of updates
    Board(board::Options),
    /// Check layering, lints, boards and texts without building
    Tidy,
    /// Write the generated pages of docs/, or check that they are current
    Docs(docs::Options),
    /// Build for other machines
    Cross(cross::Options),
    /// Put built agents into packages and images
    Package(package::Options),
    /// Go the whole way with agents and a controller of another version
    Versions(versions::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Parity(options) => parity::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Cuts(options) => cuts::run(&options),
        Task::Board(options) => board::run(&options),
        Task::Tidy => tidy::run(),
        Task::Docs(options) => docs::run(&options),
        Task::Cross(options) => cross::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Versions(options) => versions::run(&options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        super::Cli::command().debug_assert();
    }
}
