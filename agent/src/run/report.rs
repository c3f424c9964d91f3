use std::collections::{BTreeMap, VecDeque};

use dunlin_protocol::{
    DeviceProfile, Digest, Indicator, Installed, Kind, Outcome, ReasonCode, Report, TaskId, WindowsDigest,
    cbor,
};
use dunlin_trust::sha256;
use dunlin_update::DETAIL_CHARS_MAX;

/// Outcomes in one report; a report then stays far below the largest payload.
const OUTCOMES_PER_REPORT: usize = 64;
/// Outcomes that wait while the disk takes none; beyond it the oldest go, and that is an indicator itself.
const OUTCOMES_MAX: usize = 512;
/// What a digest of windows begins with.
const NO_WINDOWS: WindowsDigest = WindowsDigest { n: 0, sha256: Digest([0; 32]) };

/// Collects what the next report says.
#[derive(Debug)]
pub(super) struct Reporter {
    generation: u64,
    installed: BTreeMap<TaskId, Installed>,
    outcomes: VecDeque<Outcome>,
    /// One entry a reason: a flood of forgeries is one line with a large count.
    indicators: BTreeMap<ReasonCode, Indicator>,
    profile: DeviceProfile,
    profile_due: bool,
    /// Windows spooled since the last report.
    windows: WindowsDigest,
    /// What the last report said, encoded, but for what it told that was new.
    told: Vec<u8>,
}

impl Reporter {
    pub(super) fn new(profile: DeviceProfile) -> Self {
        let (installed, outcomes, indicators) = Default::default();
        let windows = NO_WINDOWS;
        Self {
            generation: 0,
            installed,
            outcomes,
            indicators,
            profile,
            profile_due: true,
            windows,
            told: Vec::new(),
        }
    }

    pub(super) fn outcome(&mut self, mut outcome: Outcome) {
        outcome.detail = cut(outcome.detail);
        self.outcomes.push_back(outcome);
        if self.outcomes.len() > OUTCOMES_MAX {
            self.outcomes.pop_front();
            self.indicate(Indicator {
                reason: ReasonCode::SpoolEvicted,
                detail: "outcomes of updates could not be kept".to_owned(),
                count: 1,
                at_ms: None,
            });
        }
    }

    pub(super) fn indicate(&mut self, mut indicator: Indicator) {
        indicator.detail = cut(indicator.detail);
        match self.indicators.get_mut(&indicator.reason) {
            Some(known) => {
                indicator.count = indicator.count.saturating_add(known.count);
                *known = indicator;
            }
            None => {
                self.indicators.insert(indicator.reason, indicator);
            }
        }
    }

    pub(super) fn installed(&mut self, generation: u64, installed: BTreeMap<TaskId, Installed>) {
        self.generation = generation;
        self.installed = installed;
    }

    /// A window went to the spool.
    pub(super) fn window(&mut self, body: &[u8]) {
        self.windows.n += 1;
        self.windows.sha256 = sha256(&[&self.windows.sha256.0[..], body].concat());
    }

    /// The next report carries the profile.
    pub(super) fn want_profile(&mut self) {
        self.profile_due = true;
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn view(&self) -> &BTreeMap<TaskId, Installed> {
        &self.installed
    }

    /// The reports due at this moment; what they say is only forgotten by [`Self::kept`].
    pub(super) fn reports(&self, windows_closed: u64) -> Vec<Report> {
        let outcomes: Vec<_> = self.outcomes.iter().cloned().collect();
        let mut parts: Vec<Vec<Outcome>> = outcomes.chunks(OUTCOMES_PER_REPORT).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let mut reports: Vec<_> = parts
            .into_iter()
            .map(|outcomes| Report {
                generation: self.generation,
                installed: self.installed.clone(),
                outcomes,
                windows_closed,
                ..Report::default()
            })
            .collect();
        if let Some(first) = reports.first_mut() {
            first.indicators = self.indicators.values().cloned().collect();
            first.profile = self.profile_due.then(|| self.profile.clone());
            first.windows_digest = (self.windows.n > 0).then_some(self.windows);
        }
        reports
    }

    /// Whether reports, encoded, say what the last one said, and nothing happened since: then there is nothing to forget.
    pub(super) fn are_quiet(&self, records: &[(Kind, Vec<u8>)]) -> bool {
        matches!(records, [(_, only)] if self.told == *only)
    }

    /// These reports, last taken, are in the spool.
    pub(super) fn kept(&mut self, reports: Vec<Report>) {
        let eventless = |report: &Report| Report {
            generation: report.generation,
            installed: report.installed.clone(),
            windows_closed: report.windows_closed,
            ..Report::default()
        };
        self.told = reports.last().map_or_else(Vec::new, |last| cbor::encode(&eventless(last)));
        self.outcomes.clear();
        self.indicators.clear();
        self.profile_due = false;
        self.windows = NO_WINDOWS;
    }
}

/// A detail no longer than it may be, so that a full report fits a message.
fn cut(detail: String) -> String {
    detail.chars().take(DETAIL_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::{Arch, Budgets, Phase};

    use super::*;

    fn reporter() -> Reporter {
        let budgets = Budgets { model_bytes_max: 1, model_ram_bytes_max: 1, latency_us_max: 1 };
        let class = "generic".parse().unwrap();
        let (arch, agent, ops) = (Arch::X86_64, String::new(), Default::default());
        Reporter::new(DeviceProfile { class, arch, cores: 1, ram_bytes: 1, budgets, ops, agent })
    }

    fn outcome(generation: u64) -> Outcome {
        Outcome {
            generation,
            task: None,
            release: None,
            correlation: String::new(),
            phase: Phase::Assigned,
            reason: ReasonCode::Ok,
            detail: String::new(),
            at_ms: None,
        }
    }

    fn indicator(detail: &str) -> Indicator {
        Indicator { reason: ReasonCode::EnvelopeReplayed, detail: detail.into(), count: 1, at_ms: None }
    }

    #[test]
    fn the_first_report_carries_the_digest_of_the_windows_since_the_one_before() {
        let mut reporter = reporter();
        assert_eq!(reporter.reports(0)[0].windows_digest, None);
        reporter.window(b"one");
        reporter.window(b"two");
        let first = sha256(&[&[0; 32][..], b"one"].concat());
        let both = WindowsDigest { n: 2, sha256: sha256(&[&first.0[..], b"two"].concat()) };
        for _ in 0..2 {
            assert_eq!(reporter.reports(2)[0].windows_digest, Some(both));
        }
        reporter.kept(reporter.reports(2));
        assert_eq!(reporter.reports(2)[0].windows_digest, None);
    }

    #[test]
    fn the_first_report_carries_the_profile_and_nothing_is_forgotten_before_it_is_kept() {
        let mut reporter = reporter();
        reporter.outcome(outcome(1));
        reporter.indicate(indicator("a"));
        reporter.indicate(indicator("b"));
        for _ in 0..2 {
            let reports = reporter.reports(7);
            assert_eq!(reports.len(), 1);
            assert!(reports[0].profile.is_some());
            assert_eq!((reports[0].outcomes.len(), reports[0].windows_closed), (1, 7));
            assert_eq!((reports[0].indicators[0].count, reports[0].indicators[0].detail.as_str()), (2, "b"));
        }
        reporter.kept(reporter.reports(7));
        let reports = reporter.reports(8);
        assert!(
            reports[0].profile.is_none()
                && reports[0].outcomes.is_empty()
                && reports[0].indicators.is_empty()
        );
    }

    #[test]
    fn a_report_is_quiet_if_the_one_before_said_the_same_and_nothing_happened_since() {
        let mut reporter = reporter();
        reporter.outcome(outcome(1));
        let keep = |reporter: &mut Reporter, windows_closed| {
            let reports = reporter.reports(windows_closed);
            let records: Vec<_> = reports.iter().map(|report| (Kind::Report, cbor::encode(report))).collect();
            let quiet = reporter.are_quiet(&records);
            if !quiet {
                reporter.kept(reports);
            }
            quiet
        };
        assert!(!keep(&mut reporter, 0), "nobody knows anything yet");
        assert!(keep(&mut reporter, 0), "the profile and the outcome were told");
        assert!(keep(&mut reporter, 0));
        let changes: [fn(&mut Reporter); 5] = [
            |reporter| reporter.outcome(outcome(1)),
            |reporter| reporter.indicate(indicator("a")),
            |reporter| reporter.window(b"one"),
            |reporter| reporter.want_profile(),
            |reporter| reporter.installed(2, BTreeMap::new()),
        ];
        for change in changes {
            change(&mut reporter);
            assert!(!keep(&mut reporter, 0));
            assert!(keep(&mut reporter, 0), "it was told once");
        }
        assert!(!keep(&mut reporter, 1), "a window was closed");
        (0..2 * OUTCOMES_PER_REPORT).for_each(|_| reporter.outcome(outcome(1)));
        assert!(!keep(&mut reporter, 1) && keep(&mut reporter, 1));
    }

    #[test]
    fn a_full_report_fits_a_message_whatever_a_server_answered() {
        let mut reporter = reporter();
        let long = "\u{1f415}".repeat(100_000);
        let full = || Outcome { detail: long.clone(), ..outcome(1) };
        (0..OUTCOMES_PER_REPORT).for_each(|_| reporter.outcome(full()));
        reporter.indicate(indicator(&long));
        let reports = reporter.reports(0);
        assert_eq!(reports.len(), 1);
        assert!(cbor::encode(&reports[0]).len() < crate::spool::BODY_BYTES_MAX);
    }

    #[test]
    fn many_outcomes_are_split_and_bounded_and_keep_their_order() {
        let mut reporter = reporter();
        (0..1000).for_each(|generation| reporter.outcome(outcome(generation)));
        let reports = reporter.reports(0);
        assert!(reports.iter().all(|report| report.outcomes.len() <= OUTCOMES_PER_REPORT));
        let kept: Vec<_> =
            reports.iter().flat_map(|report| report.outcomes.iter().map(|o| o.generation)).collect();
        assert_eq!(kept, (488..1000).collect::<Vec<_>>());
        assert_eq!(reports[0].indicators[0].count, 488);
    }
}
