use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use dunlin_protocol::{AckRange, BootId, Kind};
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

use super::books::{BOOKS, Books, GAP_CLASS, INDEX, RECORDS, count_acked, keys_of, record};
use super::counters::{self, BootCounters, Counters};
use super::database::{self, failure, is_damage};
use super::evict::{self, Lost};
use super::hold::{self, Hold, Note};
use super::{Found, Key, Record, SpoolError};

/// Boots that may have records waiting; in a crash loop without network the oldest are given up.
pub(super) const BOOTS_WAITING_MAX: usize = 256;
/// The database with its books. After an I/O error redb refuses everything until it is opened anew, so the
/// database is dropped then and opened by the next call.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    bytes_max: u64,
    db: Option<Database>,
    counters: Counters,
    /// The running boot until it is listed, which a full disk may put off.
    unlisted: Option<Unlisted>,
    /// The gap record, by the boot it speaks of, that was not handed out yet and may therefore still grow.
    open_gaps: evict::OpenGaps,
    /// What waits in memory for the next commit; `counters` do not count it.
    hold: Hold,
    note: Note,
}

/// A boot that is not in the books yet.
#[derive(Debug, Clone, Copy)]
struct Unlisted {
    boot: BootId,
    /// The database was damaged: what waited in it is lost, and only the counters beside it speak of it.
    lost: bool,
}

/// What a transaction does.
type Change<'a> = dyn FnMut(&WriteTransaction, &mut Books<'_>) -> Result<(), redb::Error> + 'a;

impl Store {
    pub(super) fn open(
        dir: &Path,
        bytes_max: u64,
        boot: BootId,
        note: Note,
    ) -> Result<(Self, Found), SpoolError> {
        Self::open_with(dir, bytes_max, boot, note, database::open)
    }

    /// The same, with a way to open the database that is there.
    pub(super) fn open_with(
        dir: &Path,
        bytes_max: u64,
        boot: BootId,
        note: Note,
        open_database: impl Fn(&Path) -> Result<(Database, Counters), redb::Error>,
    ) -> Result<(Self, Found), SpoolError> {
        std::fs::create_dir_all(dir)
            .map_err(|source| SpoolError::Folder { dir: dir.to_path_buf(), source })?;
        let path = dir.join("spool.redb");
        // The database code may panic on a damaged file; that must not take the agent down.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| open_database(&path)))
            .unwrap_or_else(|_| Err(redb::Error::Corrupted("opening it panicked".into())));
        let beside = counters::read(dir).unwrap_or_default();
        let (db, mut counters, found) = match opened {
            Ok((db, counters)) => (Some(db), counters, Found::Sound),
            Err(error) if is_damage(&error) => {
                let aside = dir.join("spool.damaged.redb");
                std::fs::rename(&path, &aside)
                    .map_err(|source| SpoolError::Folder { dir: dir.to_path_buf(), source })?;
                (None, Counters::default(), Found::Damaged(aside))
            }
            Err(error) => match failure(dir, error) {
                SpoolError::DiskFull(_) => (None, beside.clone(), Found::Sound),
                error @ (SpoolError::TooLarge(_)
                | SpoolError::Database { .. }
                | SpoolError::Folder { .. }) => return Err(error),
            },
        };
        // Also when the agent died after it had set a damaged database aside.
        let lost = counters.boots.is_empty() && !beside.boots.is_empty();
        if lost {
            counters = beside;
        } else {
            // This count is kept by the file alone: the database could not be written when it rose.
            counters.disk_full = counters.disk_full.max(beside.disk_full);
        }
        let mut store = Self {
            dir: dir.to_path_buf(),
            bytes_max,
            db,
            counters,
            unlisted: Some(Unlisted { boot, lost }),
            open_gaps: Default::default(),
            hold: Hold::default(),
            note,
        };
        match store.begin_boot() {
            // Devices answer with a full disk too; the boot is listed when there is room.
            Ok(()) | Err(SpoolError::DiskFull(_)) => Ok((store, found)),
            Err(error) => Err(error),
        }
    }

    /// Everything counted, with what waits in memory.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        if let Some(running) = counters.boots.last_mut() {
            let last = self.hold.last(running.appended);
            running.in_memory = last - running.appended;
            count_acked(running, &self.hold);
            running.appended = last;
        }
        counters
    }

    /// Lists the new boot. What waited in the memory of the one before is declared as gaps if that was cut off, and so is
    /// what waited in the database if that was lost.
    fn begin_boot(&mut self) -> Result<(), SpoolError> {
        self.reopen()?;
        let Some(Unlisted { boot, lost }) = self.unlisted else { return Ok(()) };
        let told = self.counters.boots.last().and_then(|before| self.note.read(&before.boot));
        self.transact(hold::NUMBERS_MAX, |txn, books| {
            let ordinal =
                books.counters.boots.last().map_or(books.counters.earlier.ordinal, |last| last.ordinal) + 1;
            let mut gone = Lost::default();
            if let Some(before) = books.counters.boots.last_mut().filter(|before| before.reserved > 0) {
                let (first, last) = before.cut_off(told);
                gone.add_range(before.boot, first, last);
            }
            if lost {
                books.counters.bytes = 0;
                for old in books.counters.boots.iter_mut().filter(|old| old.waiting() > 0) {
                    gone.add_range(old.boot, old.acked_upto + 1, old.appended);
                    old.evicted += old.waiting();
                }
            }
            books.counters.boots.push(BootCounters { boot, ordinal, ..BootCounters::default() });
            while books.counters.boots.iter().filter(|old| old.waiting() > 0).count() > BOOTS_WAITING_MAX {
                let oldest = books.counters.boots.iter().find(|old| old.waiting() > 0).map(|old| old.ordinal);
                let Some(oldest) = oldest else { break };
                evict::give_up_boot(txn, books, oldest, &mut gone)?;
            }
            evict::write_gaps(txn, books, gone)?;
            evict::make_room(txn, books)?;
            books.counters.earlier.ordinal = ordinal;
            books.counters.fold();
            Ok(())
        })?;
        self.unlisted = None;
        self.tell();
        Ok(())
    }

    /// Notes what is given and acknowledged of the running boot, so that a note of an earlier boot is not all there is.
    fn tell(&self) {
        let Some(running) = self.counters.boots.last() else { return };
        let (last, acked_upto) = (self.hold.last(running.appended), self.hold.acked_upto(running.appended));
        // The next start then declares more than what was lost.
        if let Err(error) = self.note.write(&running.boot, last, acked_upto) {
            tracing::debug!(%error, "could not note the numbers given");
        }
    }

    /// Keeps a report that tells nothing new, in memory if it may wait; see [`Hold::admit`] for the times.
    pub(super) fn append_quiet(
        &mut self,
        body: Vec<u8>,
        now_ms: u64,
        next_ms: u64,
    ) -> Result<u64, SpoolError> {
        self.begin_boot()?;
        // What waits is committed where it may wait no longer, and where no number is left: the report at hand may still wait
        // then, and would cost its acknowledgement a commit if it went along.
        let admitted = self.admit(now_ms, next_ms).or_else(|| {
            self.write(|_, _| Ok(())).ok()?;
            self.admit(now_ms, next_ms)
        });
        match admitted {
            Some(seq) => {
                self.hold.put(seq, body, now_ms);
                Ok(seq)
            }
            None => self.append(&[(Kind::Report, body)]).map(|(first, _)| first),
        }
    }

    /// The number of a report that may wait in memory, noted as given.
    fn admit(&self, now_ms: u64, next_ms: u64) -> Option<u64> {
        let running = self.counters.boots.last()?;
        let seq = self.hold.admit(running.appended, running.reserved, now_ms, next_ms)?;
        // A number that a note falls short of would be lost in silence.
        self.note.write(&running.boot, seq, self.hold.acked_upto(running.appended)).ok().map(|()| seq)
    }

    /// Commits what waits in memory: the end is orderly, and no number is given after it.
    pub(super) fn close(&mut self) -> Result<(), SpoolError> {
        self.begin_boot()?;
        self.transact(0, |_, _| Ok(()))
    }

    pub(super) fn append(&mut self, records: &[(Kind, Vec<u8>)]) -> Result<(u64, u64), SpoolError> {
        let kept = self.write(|txn, books| {
            let first = books.current().appended + 1;
            for (kind, body) in records {
                books.insert(txn, *kind, body)?;
            }
            let last = books.current().appended;
            evict::make_room(txn, books)?;
            Ok((first, last))
        });
        if matches!(kept, Err(SpoolError::DiskFull(_))) {
            self.counters.disk_full += 1;
            self.publish_counters();
        }
        kept
    }

    pub(super) fn acknowledge(&mut self, range: &AckRange) -> Result<u64, SpoolError> {
        let Some(boot) = self.counters.boot(&range.boot) else { return Ok(0) };
        let running = self.counters.boots.last().is_some_and(|last| last.boot == range.boot);
        let upto = range.upto.min(if running { self.hold.last(boot.appended) } else { boot.appended });
        if upto <= boot.acked_upto {
            return Ok(0);
        }
        if running && boot.acked_upto == boot.appended {
            // All that is on disk was acknowledged before.
            let gone = self.hold.acknowledge(upto);
            if gone > 0 {
                self.tell();
            }
            return Ok(gone);
        }
        let ordinal = boot.ordinal;
        self.write(|txn, books| {
            let keys = keys_of(txn, ordinal, upto)?;
            for key in &keys {
                books.remove(txn, *key)?;
            }
            let boot = books
                .counters
                .boots
                .iter_mut()
                .find(|boot| boot.ordinal == ordinal)
                .expect("looked up before");
            boot.acked += keys.len() as u64;
            boot.acked_upto = upto;
            books.counters.fold();
            Ok(keys.len() as u64)
        })
    }

    pub(super) fn give_up(&mut self, key: Key) -> Result<(), SpoolError> {
        self.write(|txn, books| {
            let mut lost = Lost::default();
            if txn.open_table(RECORDS)?.get((key.ordinal, key.seq))?.is_some() {
                evict::evict(txn, books, key, &mut lost)?;
            }
            evict::write_gaps(txn, books, lost)?;
            evict::make_room(txn, books)
        })
    }

    pub(super) fn next_epoch(&mut self) -> Result<u64, SpoolError> {
        self.write(|_, books| {
            books.counters.epoch += 1;
            Ok(books.counters.epoch)
        })
    }

    pub(super) fn pending(
        &mut self,
        after: Option<Key>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, SpoolError> {
        let (mut records, all) = self.read(|db, boots| {
            let table = db.begin_read()?.open_table(RECORDS)?;
            let from = after.map_or((0, 0), |key| (key.ordinal, key.seq + 1));
            let (mut records, mut bytes) = (Vec::new(), 0);
            for entry in table.range(from..)? {
                let (key, value) = entry?;
                if records.len() >= count_max || bytes > bytes_max {
                    return Ok((records, false));
                }
                let record = record(boots, key.value(), value.value());
                bytes += value.value().len();
                records.extend(record);
            }
            Ok((records, true))
        })?;
        self.seal(&records);
        if all {
            records.extend(self.held(after, count_max.saturating_sub(records.len())));
        }
        Ok(records)
    }

    /// The first of what waits in memory, which comes after all on disk.
    fn held(&self, after: Option<Key>, count_max: usize) -> Vec<Record> {
        let Some(&BootCounters { boot, ordinal, .. }) = self.counters.boots.last() else { return Vec::new() };
        let records = self.hold.records().map(|held| Record {
            key: Key { ordinal, seq: held.seq },
            boot,
            kind: Kind::Report,
            body: held.body.clone(),
        });
        records.filter(|record| Some(record.key) > after).take(count_max).collect()
    }

    pub(super) fn pending_gaps(&mut self) -> Result<Vec<Record>, SpoolError> {
        let records = self.read(|db, boots| {
            let read = db.begin_read()?;
            let (index, table) = (read.open_table(INDEX)?, read.open_table(RECORDS)?);
            let mut records = Vec::new();
            for entry in index.range((GAP_CLASS, 0, 0)..)? {
                let (_, ordinal, seq) = entry?.0.value();
                if let Some(value) = table.get((ordinal, seq))? {
                    records.extend(record(boots, (ordinal, seq), value.value()));
                }
            }
            Ok(records)
        })?;
        self.seal(&records);
        Ok(records)
    }

    /// What was handed out may be on its way, so it may not change any more.
    fn seal(&mut self, records: &[Record]) {
        for record in records.iter().filter(|record| record.kind == Kind::Gap) {
            self.open_gaps.retain(|_, key| *key != record.key);
        }
    }

    fn read<T>(
        &mut self,
        f: impl FnOnce(&Database, &[BootCounters]) -> Result<T, redb::Error>,
    ) -> Result<T, SpoolError> {
        self.reopen()?;
        let db = self.db.as_ref().expect("just opened");
        f(db, &self.counters.boots).map_err(|error| {
            let error = failure(&self.dir, error);
            self.db = None;
            error
        })
    }

    /// Runs `f` in one durable transaction, in a boot that is listed.
    fn write<T>(
        &mut self,
        f: impl FnOnce(&WriteTransaction, &mut Books<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, SpoolError> {
        self.begin_boot()?;
        self.transact(hold::NUMBERS_MAX, f)
    }

    /// Runs `f` in one durable transaction that takes along what waits in memory, and reserves so many numbers for what
    /// will wait there; memory follows only when the disk has it.
    fn transact<T>(
        &mut self,
        reserve: u64,
        f: impl FnOnce(&WriteTransaction, &mut Books<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, SpoolError> {
        let (mut f, mut value) = (Some(f), None);
        self.commit(reserve, &mut |txn, books| {
            let f = f.take().expect("a transaction runs it once");
            value = Some(f(txn, books)?);
            Ok(())
        })?;
        Ok(value.expect("a transaction that is durable ran it"))
    }

    /// The same for all `f`, so that it is compiled once.
    fn commit(&mut self, reserve: u64, f: &mut Change<'_>) -> Result<(), SpoolError> {
        self.reopen()?;
        let db = self.db.as_ref().expect("just opened");
        let mut counters = self.counters.clone();
        let mut open_gaps = self.open_gaps.clone();
        let done = (|| {
            let txn = db.begin_write()?;
            let mut books =
                Books { counters: &mut counters, open_gaps: &mut open_gaps, bytes_max: self.bytes_max };
            books.take(&txn, &self.hold)?;
            f(&txn, &mut books)?;
            if let Some(running) = books.counters.boots.last_mut() {
                running.reserved = if reserve > 0 { running.appended + reserve } else { 0 };
            }
            let bytes = serde_cbor::to_vec(&counters).map_err(|e| redb::Error::Corrupted(e.to_string()))?;
            txn.open_table(BOOKS)?.insert(0, bytes.as_slice())?;
            txn.commit()?;
            Ok(())
        })();
        match done {
            Ok(()) => {
                self.counters = counters;
                self.open_gaps = open_gaps;
                self.hold = Hold::default();
                self.publish_counters();
                Ok(())
            }
            Err(error) => {
                self.db = None;
                Err(failure(&self.dir, error))
            }
        }
    }

    /// Opens the database again after an error. A commit that failed in its last step may still have reached the
    /// disk, so the books are read anew.
    fn reopen(&mut self) -> Result<(), SpoolError> {
        if self.db.is_none() {
            let (db, counters) =
                database::open(&self.dir.join("spool.redb")).map_err(|e| failure(&self.dir, e))?;
            self.db = Some(db);
            self.open_gaps.clear();
            let listed = self.unlisted.is_none_or(|unlisted| counters.boot(&unlisted.boot).is_some());
            if listed {
                self.unlisted = None;
            }
            // Where the database is new, what the counters beside the old one tell is all there is.
            if !self.unlisted.is_some_and(|unlisted| unlisted.lost) {
                self.counters = Counters { disk_full: self.counters.disk_full, ..counters };
            }
            let running = self.counters.boots.last().filter(|_| self.unlisted.is_none());
            self.hold.committed(running.map_or(0, |running| running.appended));
        }
        Ok(())
    }

    fn publish_counters(&self) {
        if let Err(error) = counters::write(&self.dir, &self.counters) {
            tracing::warn!(%error, "could not write the spool's counters file");
        }
    }
}
