//! The tables, and what a transaction does in them.

use dunlin_protocol::Kind;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::counters::{BootCounters, Counters};
use super::evict;
use super::hold::Hold;
use super::{Key, Record};

/// (boot ordinal, number) → format, kind, body.
pub(super) const RECORDS: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("records");
/// (class, boot ordinal, number) → cost in bytes: the order of eviction.
pub(super) const INDEX: TableDefinition<'_, (u8, u64, u64), u64> = TableDefinition::new("index");
/// The counters, CBOR.
pub(super) const BOOKS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("books");

/// Form of a stored record; another form gets another number.
const FORMAT: u8 = 1;
/// What a record costs beside its body: keys, index, page overhead.
const OVERHEAD_BYTES: u64 = 64;

/// How little a record is worth: the lowest class is evicted first. Gaps go last, as they speak for others.
pub(super) fn class(kind: Kind) -> u8 {
    match kind {
        Kind::Samples => 0,
        Kind::Window => 1,
        Kind::Report | Kind::Reply | Kind::Status | Kind::Desired | Kind::Cmd | Kind::Ack => 2,
        Kind::Gap => GAP_CLASS,
    }
}

pub(super) const GAP_CLASS: u8 = 3;
const KINDS: [Kind; 9] = [
    Kind::Status,
    Kind::Window,
    Kind::Report,
    Kind::Samples,
    Kind::Gap,
    Kind::Reply,
    Kind::Desired,
    Kind::Cmd,
    Kind::Ack,
];

pub(super) fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    let code = KINDS.iter().position(|k| *k == kind).expect("the table lists every kind");
    let mut bytes = Vec::with_capacity(body.len() + 2);
    bytes.push(FORMAT);
    bytes.push(u8::try_from(code).expect("there are nine kinds"));
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    match bytes {
        [FORMAT, code, body @ ..] => KINDS.get(usize::from(*code)).map(|kind| (*kind, body)),
        _ => None,
    }
}

pub(super) fn cost(body: &[u8]) -> u64 {
    body.len() as u64 + OVERHEAD_BYTES
}

/// A transaction's view of what it may change beside the tables.
pub(super) struct Books<'a> {
    pub(super) counters: &'a mut Counters,
    pub(super) open_gaps: &'a mut evict::OpenGaps,
    pub(super) bytes_max: u64,
}

impl Books<'_> {
    /// The running boot.
    pub(super) fn current(&mut self) -> &mut BootCounters {
        self.counters.boots.last_mut().expect("a boot is begun before any record")
    }

    /// Gives `body` the next number.
    pub(super) fn insert(
        &mut self,
        txn: &WriteTransaction,
        kind: Kind,
        body: &[u8],
    ) -> Result<u64, redb::Error> {
        let boot = self.current();
        boot.appended += 1;
        if kind == Kind::Window {
            boot.windows += 1;
        }
        let (ordinal, seq) = (boot.ordinal, boot.appended);
        self.put(txn, Key { ordinal, seq }, kind, body)?;
        Ok(seq)
    }

    /// Takes what waited in memory along.
    pub(super) fn take(&mut self, txn: &WriteTransaction, hold: &Hold) -> Result<(), redb::Error> {
        if hold.is_empty() {
            return Ok(());
        }
        count_acked(self.current(), hold);
        for held in hold.records() {
            self.insert(txn, Kind::Report, &held.body)?;
        }
        evict::make_room(txn, self)
    }

    /// Writes a record in its place.
    pub(super) fn put(
        &mut self,
        txn: &WriteTransaction,
        key: Key,
        kind: Kind,
        body: &[u8],
    ) -> Result<(), redb::Error> {
        txn.open_table(RECORDS)?.insert((key.ordinal, key.seq), encode(kind, body).as_slice())?;
        let before = txn
            .open_table(INDEX)?
            .insert((class(kind), key.ordinal, key.seq), cost(body))?
            .map(|old| old.value());
        self.counters.bytes = self.counters.bytes.saturating_sub(before.unwrap_or(0)) + cost(body);
        Ok(())
    }

    /// Removes a record and returns its kind and body.
    pub(super) fn remove(
        &mut self,
        txn: &WriteTransaction,
        key: Key,
    ) -> Result<Option<(Kind, Vec<u8>)>, redb::Error> {
        let mut records = txn.open_table(RECORDS)?;
        let Some(bytes) = records.remove((key.ordinal, key.seq))?.map(|bytes| bytes.value().to_vec()) else {
            return Ok(None);
        };
        let Some((kind, body)) = decode(&bytes) else { return Ok(None) };
        let cost = txn
            .open_table(INDEX)?
            .remove((class(kind), key.ordinal, key.seq))?
            .map_or(0, |cost| cost.value());
        self.counters.bytes = self.counters.bytes.saturating_sub(cost);
        Ok(Some((kind, body.to_vec())))
    }
}

/// Counts what was acknowledged before it was ever committed.
pub(super) fn count_acked(running: &mut BootCounters, hold: &Hold) {
    let acked_upto = hold.acked_upto(running.appended);
    if acked_upto > running.appended {
        running.acked += acked_upto - running.appended;
        (running.appended, running.acked_upto) = (acked_upto, acked_upto);
    }
}

/// The keys of one boot's records up to `upto`.
pub(super) fn keys_of(txn: &WriteTransaction, ordinal: u64, upto: u64) -> Result<Vec<Key>, redb::Error> {
    let table = txn.open_table(RECORDS)?;
    let mut keys = Vec::new();
    for entry in table.range((ordinal, 0)..=(ordinal, upto))? {
        let (ordinal, seq) = entry?.0.value();
        keys.push(Key { ordinal, seq });
    }
    Ok(keys)
}

pub(super) fn record(boots: &[BootCounters], (ordinal, seq): (u64, u64), value: &[u8]) -> Option<Record> {
    let boot = boots.iter().find(|boot| boot.ordinal == ordinal)?.boot;
    let (kind, body) = decode(value)?;
    Some(Record { key: Key { ordinal, seq }, boot, kind, body: body.to_vec() })
}
