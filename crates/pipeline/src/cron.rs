use std::cmp::Ordering;
use std::str::FromStr;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds};
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};

/// A cron expression in UTC: five fields, or six with seconds first.
#[derive(Debug, Clone)]
pub struct Schedule(Cron);

/// The text is no cron expression.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} is not a cron expression (minute hour day month weekday, with seconds before it if wanted)"
)]
pub struct ScheduleError {
    text: String,
    #[source]
    source: CronError,
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let parser = CronParser::builder().seconds(Seconds::Optional).build();
        parser.parse(text).map(Self).map_err(|source| ScheduleError { text: text.to_owned(), source })
    }
}

impl Schedule {
    /// The first time after `after_ms` at which the schedule is due, if it is not later than `now_ms`. Times
    /// missed while the controller was down so become one.
    pub fn due(&self, after_ms: u64, now_ms: u64) -> Option<u64> {
        self.next(after_ms).filter(|due| *due <= now_ms)
    }

    /// The first time after `after_ms`, Unix milliseconds; `None` if the expression never matches again.
    pub fn next(&self, after_ms: u64) -> Option<u64> {
        let after = Utc(i64::try_from(after_ms / 1000).ok()?);
        let next = self.0.find_next_occurrence(&after, false).ok()?;
        u64::try_from(next.0).ok()?.checked_mul(1000)
    }
}

/// Seconds since the Unix epoch.
#[derive(Debug, Clone)]
struct Utc(i64);

const DAY_S: i64 = 86_400;

impl CronDateTime for Utc {
    fn to_civil(&self) -> CivilDateTime {
        let (year, month, day) = civil_from_days(self.0.div_euclid(DAY_S));
        let second = u32::try_from(self.0.rem_euclid(DAY_S)).expect("a day has 86,400 seconds");
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(year, month, day),
            CivilTime::from_parts_unchecked(second / 3600, second / 60 % 60, second % 60),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        // 1970-01-01 was a Thursday.
        let days = (self.0.div_euclid(DAY_S) + 4).rem_euclid(7);
        Weekday::from_days_from_sunday(u32::try_from(days).expect("within a week"))
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let days = days_from_civil(civil.year(), civil.month(), civil.day());
        let second =
            i64::from(civil.hour()) * 3600 + i64::from(civil.minute()) * 60 + i64::from(civil.second());
        Ok(Resolution::Single(Self(days * DAY_S + second)))
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(seconds).map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

/// Days since 1970-01-01 to the proleptic Gregorian calendar (Hinnant, "chrono-compatible low-level date
/// algorithms", 2013): eras of 400 years that begin on 1 March.
fn civil_from_days(days: i64) -> (i32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let small = |value: i64| u32::try_from(value).expect("months and days are small and positive");
    (i32::try_from(year).unwrap_or(i32::MAX), small(month), small(day))
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = if month > 2 { i64::from(month) - 3 } else { i64::from(month) + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-02-28 23:59:30 UTC, a Saturday.
    const FEB: u64 = 1_772_323_170_000;

    #[test]
    fn days_and_dates_are_inverse_over_four_centuries() {
        for days in -1000..150_000 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
    }

    #[test]
    fn schedules_fall_due_once() {
        let monthly: Schedule = "0 0 1 * *".parse().unwrap();
        assert_eq!(monthly.next(FEB), Some(FEB + 30_000));
        assert_eq!(monthly.due(FEB, FEB + 29_999), None);
        assert_eq!(
            monthly.due(FEB, FEB + 90 * 86_400_000),
            Some(FEB + 30_000),
            "three missed months are one"
        );
        let sunday: Schedule = "30 6 * * SUN".parse().unwrap();
        assert_eq!(sunday.next(FEB), Some(FEB + 30_000 + (6 * 60 + 30) * 60_000));
        let seconds: Schedule = "*/10 * * * * *".parse().unwrap();
        assert_eq!(seconds.next(FEB), Some(FEB + 10_000));
        assert_eq!(seconds.next(FEB + 9_999), Some(FEB + 10_000));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for text in ["", "every day", "61 * * * *", "* * * *"] {
            assert!(text.parse::<Schedule>().is_err(), "{text:?}");
        }
    }
}
