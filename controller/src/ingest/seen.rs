//! Which records of a boot are accounted for.
use dunlin_protocol::varint;

/// Ranges beyond the unbroken run that are kept. Holes close when the device sends again; a device that has
/// more of them has to close some first.
const RANGES_MAX: usize = 1024;

/// The unbroken run from 1, and the ranges beyond it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Last number of the unbroken run from 1; 0 if 1 is missing.
    upto: u64,
    /// Inclusive ranges beyond `upto + 1`, rising, never touching.
    ahead: Vec<(u64, u64)>,
}

/// Too many holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyHoles;

impl Seen {
    /// Reads what [`Seen::ahead`] wrote; `None` if it is not that.
    pub fn restore(upto: u64, ahead: &[u8], bytes_max: usize) -> Option<Self> {
        if ahead.len() > bytes_max {
            return None;
        }
        let mut seen = Self { upto, ahead: Vec::new() };
        // Pairs of varints: their count is the number of bytes without a continuation bit.
        let count = ahead.iter().filter(|byte| **byte & 0x80 == 0).count();
        let values = varint::decode(ahead, count)?;
        let mut floor = upto.checked_add(1)?;
        for pair in values.chunks(2) {
            let &[first, last] = pair else { return None };
            if first <= floor || last < first {
                return None;
            }
            seen.ahead.push((first, last));
            floor = last.checked_add(1)?;
        }
        Some(seen)
    }

    /// Last number of the unbroken run.
    pub fn upto(&self) -> u64 {
        self.upto
    }

    /// The ranges beyond it, as the database keeps them.
    pub fn ahead(&self) -> Vec<u8> {
        varint::encode(self.ahead.iter().flat_map(|&(first, last)| [first, last]))
    }

    /// Ranges that are missing below the highest number seen, the first `limit` of them.
    pub fn missing(&self, limit: usize) -> Vec<(u64, u64)> {
        let befores = std::iter::once(self.upto).chain(self.ahead.iter().map(|&(_, last)| last));
        befores.zip(&self.ahead).map(|(before, &(first, _))| (before + 1, first - 1)).take(limit).collect()
    }

    /// Whether a number is accounted for.
    pub fn contains(&self, seq: u64) -> bool {
        seq <= self.upto || self.ahead.iter().any(|&(first, last)| (first..=last).contains(&seq))
    }

    /// Whether a number is the highest that is accounted for.
    pub fn is_last(&self, seq: u64) -> bool {
        seq == self.ahead.last().map_or(self.upto, |&(_, last)| last)
    }

    /// The parts of a range that are not accounted for, rising.
    pub fn unseen(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut unseen = Vec::new();
        let mut next = self.upto.checked_add(1).map(|floor| first.max(floor));
        for &(a, b) in &self.ahead {
            let Some(from) = next.filter(|from| *from <= last) else { break };
            if from < a {
                unseen.push((from, last.min(a - 1)));
            }
            next = if from <= b { b.checked_add(1) } else { next };
        }
        unseen.extend(next.filter(|from| *from <= last).map(|from| (from, last)));
        unseen
    }

    /// Accounts for a range; returns how many of its numbers were not yet.
    pub fn insert(&mut self, first: u64, last: u64) -> Result<u64, TooManyHoles> {
        let Some(next) = self.upto.checked_add(1) else { return Ok(0) };
        let first = first.max(next);
        if last < first {
            return Ok(0);
        }
        let mut fresh = last - first + 1;
        let (mut low, mut high) = (first, last);
        let mut kept = Vec::with_capacity(self.ahead.len() + 1);
        for &(a, b) in &self.ahead {
            if b.saturating_add(1) < first || a > last.saturating_add(1) {
                kept.push((a, b));
            } else {
                let overlap = b.min(last).checked_sub(a.max(first)).map_or(0, |span| span + 1);
                fresh -= overlap;
                (low, high) = (low.min(a), high.max(b));
            }
        }
        if low == self.upto.saturating_add(1) {
            self.upto = high;
        } else {
            if kept.len() >= RANGES_MAX {
                return Err(TooManyHoles);
            }
            let at = kept.partition_point(|&(a, _)| a < low);
            kept.insert(at, (low, high));
        }
        self.ahead = kept;
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn any_order_with_any_repeats_counts_each_number_once() {
        // A full permutation walk of 1..=97 by a generator of that prime field, with repeats.
        let mut seen = Seen::default();
        let (mut n, mut total) = (1u64, 0);
        for step in 0..300u64 {
            n = n * 5 % 97;
            total += seen.insert(n, n).unwrap();
            assert!(seen.contains(n));
            let is_last = |m| seen.contains(m) && (m + 1..=97).all(|l| !seen.contains(l));
            assert!((1..=97).all(|m| seen.is_last(m) == is_last(m)));
            if step % 7 == 0 {
                let again = Seen::restore(seen.upto(), &seen.ahead(), 10_000).unwrap();
                assert_eq!(again, seen);
                let missing: u64 =
                    seen.missing(usize::MAX).iter().map(|(first, last)| last - first + 1).sum();
                let highest = (1..=97).rev().find(|n| seen.contains(*n)).unwrap();
                assert_eq!(missing, (1..=highest).filter(|n| !seen.contains(*n)).count() as u64);
            }
        }
        assert_eq!((total, seen.upto()), (96, 96));
        assert!(seen.ahead().is_empty());
    }

    #[test]
    fn ranges_agree_with_a_plain_set() {
        let mut seen = Seen::default();
        let mut set = BTreeSet::new();
        let mut state = 12345u64;
        for _ in 0..500 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let first = 1 + (state >> 33) % 200;
            let last = first + (state >> 20) % 9;
            let unseen: Vec<_> =
                seen.unseen(first, last).into_iter().flat_map(|(first, last)| first..=last).collect();
            assert_eq!(unseen, (first..=last).filter(|n| !set.contains(n)).collect::<Vec<_>>());
            let fresh = (first..=last).filter(|n| set.insert(*n)).count() as u64;
            assert_eq!(seen.insert(first, last), Ok(fresh));
            assert!((1..=220).all(|n| seen.contains(n) == set.contains(&n)));
        }
    }

    #[test]
    fn hostile_ranges_and_stored_bytes_do_no_harm() {
        let mut seen = Seen::default();
        assert_eq!(seen.insert(5, 2), Ok(0));
        assert!(seen.unseen(5, 2).is_empty());
        assert_eq!(seen.unseen(1, u64::MAX), [(1, u64::MAX)]);
        assert_eq!(seen.insert(1, u64::MAX), Ok(u64::MAX));
        assert!(seen.unseen(1, u64::MAX).is_empty());
        assert_eq!(seen.insert(1, u64::MAX), Ok(0));
        let mut holes = Seen::default();
        for n in 0..RANGES_MAX as u64 {
            assert_eq!(holes.insert(3 + 2 * n, 3 + 2 * n), Ok(1));
        }
        assert_eq!(holes.insert(1_000_000, 1_000_000), Err(TooManyHoles));
        assert_eq!(holes.insert(1, 2), Ok(2));
        for bad in [&[1u8, 2][..], &[9], &[9, 8], &[0x80], &[5, 6, 6, 7]] {
            assert_eq!(Seen::restore(1, bad, 100), None, "{bad:?}");
        }
    }
}
