use std::collections::BTreeMap;

use dunlin_protocol::{BootId, Gap, Kind, cbor};
use redb::{ReadableTable, WriteTransaction};

use super::books::{Books, INDEX, RECORDS, cost, decode, keys_of};
use super::{BODY_BYTES_MAX, Key};

/// Ranges in one gap record; at 18 bytes each a full one stays below 20 KiB.
const RANGES_MAX: usize = 1024;

/// By the boot it speaks of: the gap record that may still grow.
pub(super) type OpenGaps = BTreeMap<BootId, Key>;

/// Numbers that went, by boot, as inclusive ranges in rising order.
#[derive(Debug, Default)]
pub(super) struct Lost(BTreeMap<BootId, Vec<(u64, u64)>>);

impl Lost {
    pub(super) fn add_range(&mut self, boot: BootId, first: u64, last: u64) {
        if first <= last {
            let ranges = self.0.entry(boot).or_default();
            ranges.push((first, last));
            // Eviction goes upwards, so nearly every range just prolongs the last one.
            if ranges.len() > 1 {
                *ranges = merge(std::mem::take(ranges));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Sorts ranges and joins those that touch.
pub(super) fn merge(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Forces records out until the bound holds, and records what went.
pub(super) fn make_room(txn: &WriteTransaction, books: &mut Books<'_>) -> Result<(), redb::Error> {
    loop {
        let mut lost = Lost::default();
        while books.counters.bytes > books.bytes_max {
            let Some(victim) = cheapest(txn, books)? else { break };
            evict(txn, books, victim, &mut lost)?;
        }
        if lost.is_empty() {
            return Ok(());
        }
        // The gap itself takes room, so look again.
        write_gaps(txn, books, lost)?;
    }
}

/// Gives up all records of one boot.
pub(super) fn give_up_boot(
    txn: &WriteTransaction,
    books: &mut Books<'_>,
    ordinal: u64,
    lost: &mut Lost,
) -> Result<(), redb::Error> {
    for key in keys_of(txn, ordinal, u64::MAX)? {
        evict(txn, books, key, lost)?;
    }
    Ok(())
}

/// The record of least value; gap records that still grow are left alone.
fn cheapest(txn: &WriteTransaction, books: &Books<'_>) -> Result<Option<Key>, redb::Error> {
    for entry in txn.open_table(INDEX)?.iter()? {
        let (_, ordinal, seq) = entry?.0.value();
        let key = Key { ordinal, seq };
        if !books.open_gaps.values().any(|open| *open == key) {
            return Ok(Some(key));
        }
    }
    Ok(None)
}

/// Removes a record and notes that it is lost.
pub(super) fn evict(
    txn: &WriteTransaction,
    books: &mut Books<'_>,
    key: Key,
    lost: &mut Lost,
) -> Result<(), redb::Error> {
    let removed = books.remove(txn, key)?;
    let Some(boot) = books.counters.boots.iter_mut().find(|boot| boot.ordinal == key.ordinal) else {
        return Ok(());
    };
    boot.evicted += 1;
    lost.add_range(boot.boot, key.seq, key.seq);
    match removed {
        Some((Kind::Window, _)) => boot.windows_evicted += 1,
        Some((Kind::Gap, body)) => {
            // What an evicted gap spoke of is spoken of by the next one.
            if let Ok(gap) = cbor::decode::<Gap>(&body, BODY_BYTES_MAX) {
                gap.ranges.iter().for_each(|(first, last)| lost.add_range(gap.boot, *first, *last));
            }
        }
        Some(_) | None => {}
    }
    Ok(())
}

/// Writes what was lost into gap records: into the one that still grows where there is one.
pub(super) fn write_gaps(
    txn: &WriteTransaction,
    books: &mut Books<'_>,
    lost: Lost,
) -> Result<(), redb::Error> {
    for (boot, ranges) in lost.0 {
        let open = books.open_gaps.get(&boot).copied();
        let known = match open {
            Some(key) => read_gap(txn, key)?,
            None => None,
        };
        let grown = merge(
            known.iter().flat_map(|gap| gap.ranges.iter().copied()).chain(ranges.iter().copied()).collect(),
        );
        if let Some(key) = open.filter(|_| known.is_some() && grown.len() <= RANGES_MAX) {
            books.put(txn, key, Kind::Gap, &cbor::encode(&Gap { boot, ranges: grown }))?;
            continue;
        }
        for chunk in ranges.chunks(RANGES_MAX) {
            let body = cbor::encode(&Gap { boot, ranges: chunk.to_vec() });
            debug_assert!(cost(&body) < BODY_BYTES_MAX as u64, "a full gap fits a payload");
            let seq = books.insert(txn, Kind::Gap, &body)?;
            let ordinal = books.current().ordinal;
            books.open_gaps.insert(boot, Key { ordinal, seq });
        }
    }
    Ok(())
}

fn read_gap(txn: &WriteTransaction, key: Key) -> Result<Option<Gap>, redb::Error> {
    let table = txn.open_table(RECORDS)?;
    let Some(value) = table.get((key.ordinal, key.seq))? else { return Ok(None) };
    Ok(decode(value.value()).and_then(|(_, body)| cbor::decode(body, BODY_BYTES_MAX).ok()))
}
