//! What a device writes that is connected and idle: checks that bring nothing new, and reports that tell nothing new.

use super::*;
use crate::spool::{Spool, draw_boot};

/// What a device may write in an hour.
const HOUR_BYTES_MAX: u64 = 1_000_000;
/// Between two checks, and two reports, in the shipped settings.
const EVERY_MS: u64 = 300_000;
const HOUR_MS: u64 = 3_600_000;
const HOURS: u64 = 10;
/// What a file system adds to a call that writes: two files made, renamed and synced with their folder are four
/// transactions of its journal, of ten blocks at most each.
const JOURNAL_BYTES: u64 = 4 * 10 * 4096;

/// Bytes that this thread wrote, by the kernel's books, and calls that wrote some.
#[derive(Default)]
struct Written {
    bytes: u64,
    calls: u64,
}

impl Written {
    fn by<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let before = written();
        let value = call();
        let bytes = written() - before;
        self.bytes += bytes;
        self.calls += u64::from(bytes > 0);
        value
    }

    fn in_an_hour(&self) -> u64 {
        (self.bytes + self.calls * JOURNAL_BYTES) / HOURS
    }
}

/// In whole blocks, one more for each write that may begin within one.
fn written() -> u64 {
    let books = fs::read_to_string("/proc/thread-self/io").unwrap();
    let number = |name: &str| -> u64 {
        let line = books.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    number("wchar:") + 4096 * number("syscw:")
}

/// Each report is acknowledged before the next, if anybody does.
fn reports(connected: bool, keep: impl Fn(&Spool, u64) -> u64) -> Written {
    let dir = tempfile::tempdir().unwrap();
    // Where the note lies nothing is written to a disk.
    let spool = Spool::open(dir.path(), None, 1 << 24, draw_boot()).unwrap();
    let mut written = Written::default();
    for now_ms in (0..HOURS * HOUR_MS).step_by(EVERY_MS as usize) {
        let upto = written.by(|| keep(&spool, now_ms));
        if connected {
            written.by(|| spool.acknowledge(&AckRange { boot: spool.boot(), upto })).unwrap();
        }
    }
    written
}

fn checks() -> Written {
    let (world, dir) = (World::new(), tempfile::tempdir().unwrap());
    let mut trusted = world.open(dir.path());
    let (files, mut written) = (world.check(), Written::default());
    for later_ms in (0..HOURS * HOUR_MS).step_by(EVERY_MS as usize) {
        let wall_ms = NOW_MS - HOURS * HOUR_MS + later_ms;
        let now = Now { mono_ms: later_ms, wall_ms: Some(wall_ms) };
        written.by(|| {
            trusted.accept(&files, now).unwrap().unwrap();
            trusted.approve().unwrap().unwrap();
        });
        if later_ms == 0 {
            // The first one brought everything.
            written = Written::default();
        }
        assert_eq!(trusted.floors().wall_ms, wall_ms, "in memory it is known at once");
        let kept_ms = world.open(dir.path()).floors().wall_ms;
        assert!(trusted.floors().wall_ms - kept_ms < HOUR_MS, "on disk within the hour");
    }
    written
}

#[test]
fn an_idle_device_writes_less_than_a_megabyte_an_hour() {
    let report = vec![7; 400];
    let quiet =
        |spool: &Spool, now_ms| spool.append_quiet(report.clone(), now_ms, now_ms + EVERY_MS).unwrap();
    let checks = checks();
    assert_eq!(checks.calls, HOURS - 1, "one write an hour");
    for connected in [true, false] {
        let reports = reports(connected, quiet);
        println!(
            "connected: {connected}; a commit of the spool: {} bytes, {} in {HOURS} hours; floors: {} bytes an hour",
            reports.bytes / reports.calls,
            reports.calls,
            checks.bytes / HOURS
        );
        assert!(reports.calls <= HOURS * 4, "one commit in a quarter of an hour: {}", reports.calls);
        let hour = reports.in_an_hour() + checks.in_an_hour();
        // Without a link it is a device with something to keep.
        assert!(hour <= HOUR_BYTES_MAX || !connected, "{hour} bytes an hour");
    }
    // What the same reports cost that are committed at once shows that all this is seen.
    let at_once = reports(true, |spool, _| spool.append(Kind::Report, report.clone()).unwrap());
    assert_eq!(at_once.calls, 2 * 12 * HOURS);
    assert!(at_once.in_an_hour() > HOUR_BYTES_MAX, "{}", at_once.in_an_hour());
}
