//! Lines of a file, with a bound, and where the next one begins.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{BatchError, Position};

/// Longest line: a row of some hundred thousand numbers.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    position: Position,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn open(path: &Path, from: Position) -> Result<Self, BatchError> {
        let mut file = File::open(path).map_err(BatchError::file("open", path))?;
        file.seek(SeekFrom::Start(from.offset)).map_err(BatchError::file("read", path))?;
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), position: from, line: Vec::new() })
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The next line that is not empty, with its number, without its end; `None` at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &str)>, BatchError> {
        loop {
            self.line.clear();
            let read = self.file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
            let read = read.map_err(BatchError::file("read", &self.path))? as u64;
            if read == 0 {
                return Ok(None);
            }
            self.position.offset += read;
            self.position.place += 1;
            if read == LINE_BYTES_MAX && self.line.last() != Some(&b'\n') {
                let long = format!("line {} is longer than {LINE_BYTES_MAX} bytes", self.position.place);
                return Err(BatchError::Table(long));
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        let text = std::str::from_utf8(&self.line).map_err(|e| {
            BatchError::file("read", &self.path)(std::io::Error::new(
                ErrorKind::InvalidData,
                format!("line {} is no UTF-8: {e}", self.position.place),
            ))
        })?;
        Ok(Some((self.position.place, text.trim_end_matches(['\n', '\r']))))
    }
}
