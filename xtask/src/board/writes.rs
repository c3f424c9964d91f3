//! Every write to a disk in its order, as the emulator's `blklogwrites` records them. The format is that of Linux's device
//! mapper: one sector that says how many there are, and for each one a sector of where and how long, and its content.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};

/// Room for a record, bytes. It is sparse; a run of some minutes writes a tenth of it.
const ROOM_BYTES: u64 = 4 << 30;
/// Bytes of an entry's head that say something; the rest of its sector is zero.
const HEAD_BYTES: usize = 32;
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// The flag of an entry that frees sectors and has no content.
const DISCARD: u64 = 1 << 2;

/// A record.
pub(super) struct Writes {
    log: File,
    sector_bytes: u64,
    number: u64,
}

impl Writes {
    /// Makes room for a record.
    pub(super) fn make(path: &Path) -> Result<()> {
        Ok(File::create(path)?.set_len(ROOM_BYTES)?)
    }

    /// How many writes are recorded so far.
    pub(super) fn so_far(path: &Path) -> Result<u64> {
        Ok(Self::open(path)?.number)
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let log = File::open(path)?;
        let mut head = [0; HEAD_BYTES];
        log.read_exact_at(&mut head, 0)?;
        let [magic, version, number, sector_bytes] = fields(&head);
        if magic == 0 {
            return Ok(Self { log, sector_bytes: 512, number: 0 });
        }
        // The last field has 32 bits.
        let sector_bytes = sector_bytes & u64::from(u32::MAX);
        ensure!(magic == MAGIC && version == 1, "{} is no record of writes", path.display());
        Ok(Self { log, sector_bytes, number })
    }

    /// How many there are.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Does them to `disk`, and calls `after` with the number of each.
    pub(super) fn replay(&self, disk: &Path, mut after: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let disk = File::options().write(true).open(disk)?;
        self.each(|number, offset, content| {
            disk.write_all_at(content, offset)?;
            after(number)
        })
    }

    /// The numbers of those with `words` in their content.
    pub(super) fn with(&self, words: &[u8]) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        self.each(|number, _, content| {
            found.extend(content.windows(words.len()).any(|bytes| bytes == words).then_some(number));
            Ok(())
        })?;
        Ok(found)
    }

    /// Calls `look` with the number of each, where on the disk it begins, bytes, and its content, which is empty if it frees
    /// sectors.
    fn each(&self, mut look: impl FnMut(u64, u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut at = self.sector_bytes;
        for number in 1..=self.number {
            let mut head = [0; HEAD_BYTES];
            self.log.read_exact_at(&mut head, at)?;
            let [sector, sectors, flags, _] = fields(&head);
            at += self.sector_bytes;
            let bytes = if flags & DISCARD == 0 { sectors * self.sector_bytes } else { 0 };
            let mut content = vec![0; usize::try_from(bytes)?];
            self.log.read_exact_at(&mut content, at)?;
            at += bytes;
            look(number, sector * self.sector_bytes, &content)?;
        }
        Ok(())
    }
}

fn fields(head: &[u8; HEAD_BYTES]) -> [u64; 4] {
    std::array::from_fn(|i| {
        let mut own = [0; 8];
        own.copy_from_slice(&head[i * 8..i * 8 + 8]);
        u64::from_le_bytes(own)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_done_in_their_order_and_discards_have_no_content() {
        let folder = tempfile::tempdir().unwrap();
        let (log, disk) = (folder.path().join("log"), folder.path().join("disk"));
        File::create(&disk).unwrap().set_len(4 * 512).unwrap();
        let sector = |numbers: &[u64]| {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let record = [
            sector(&[MAGIC, 1, 3, 512]),
            sector(&[1, 1, 0, 0]),
            vec![7; 512],
            sector(&[0, 4, DISCARD, 0]),
            sector(&[3, 1, 0, 0]),
            vec![9; 512],
        ];
        std::fs::write(&log, record.concat()).unwrap();
        let writes = Writes::open(&log).unwrap();
        let mut seen = Vec::new();
        let look = |number| {
            let disk = std::fs::read(&disk)?;
            seen.push((number, [0, 1, 2, 3].map(|sector| disk[sector * 512])));
            Ok(())
        };
        writes.replay(&disk, look).unwrap();
        assert_eq!(seen, [(1, [0, 7, 0, 0]), (2, [0, 7, 0, 0]), (3, [0, 7, 0, 9])]);
        assert_eq!(
            [[9, 9], [7, 7], [7, 9]].map(|words| writes.with(&words).unwrap()),
            [vec![3], vec![1], vec![]]
        );
    }
}
