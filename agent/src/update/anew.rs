use std::io;
use std::path::Path;

use dunlin_update::Record;

use super::driver::UpdateError;
use super::trusted::Trusted;
use super::twin::Twin;
use crate::identity::sync_dir;

/// Forgets what was seen of another enrolment, for the next start: versions, generations and update work under way.
/// What serves goes on serving. The agent must not run. No power cut brings it back after this.
///
/// # Errors
/// A file or folder can not be written.
pub fn begin_anew(state_dir: &Path) -> Result<(), UpdateError> {
    begin_anew_with(state_dir, &sync_dir)
}

/// The same, with a way to make the names in a folder durable.
fn begin_anew_with(state_dir: &Path, sync: &dyn Fn(&Path) -> io::Result<()>) -> Result<(), UpdateError> {
    Trusted::begin_anew_with(&state_dir.join("trust"), sync)?;
    let slots = state_dir.join("slots");
    let forget = || {
        let (mut twin, found) = Twin::open(&slots, "slots")?;
        if let Some(mut record) = found.body.and_then(|bytes| Record::decode(&bytes).ok()) {
            // Generations count from 1 at every controller.
            record.generation = 0;
            twin.save(&record.encode())?;
        }
        // Without a journal the next start takes up the record.
        for side in ["journal.a", "journal.b"] {
            match std::fs::remove_file(slots.join(side)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        if slots.exists() { sync(&slots) } else { Ok(()) }
    };
    forget().map_err(|source| UpdateError::State { dir: slots.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use dunlin_update::Journal;

    use super::*;

    #[test]
    fn the_generation_is_forgotten_and_the_record_stays() {
        let state = tempfile::tempdir().unwrap();
        for dir in ["trust", "slots"] {
            std::fs::create_dir(state.path().join(dir)).unwrap();
        }
        let slots = state.path().join("slots");
        let record = Record { format: 1, generation: 57, tasks: Default::default() };
        Twin::open(&slots, "slots").unwrap().0.save(&record.encode()).unwrap();
        Twin::open(&slots, "journal").unwrap().0.save(b"of another controller").unwrap();
        begin_anew(state.path()).unwrap();
        assert!(!state.path().join("trust").exists() && state.path().join("trust.old").exists());
        assert_eq!(Twin::open(&slots, "journal").unwrap().1.body, None);
        let left = Record::decode(&Twin::open(&slots, "slots").unwrap().1.body.unwrap()).unwrap();
        assert_eq!((left.generation, &left.tasks), (0, &record.tasks));
        drop(Journal::adopt(left));
        // A device that never ran has nothing to forget.
        begin_anew(&state.path().join("nowhere")).unwrap();
    }

    /// The new identity is durable by then: what is forgotten must not come back beside it.
    #[test]
    fn each_folder_is_synced_after_the_last_name_in_it_went() {
        let state = tempfile::tempdir().unwrap();
        for dir in ["trust", "slots"] {
            std::fs::create_dir(state.path().join(dir)).unwrap();
        }
        let slots = state.path().join("slots");
        let mut twin = Twin::open(&slots, "journal").unwrap().0;
        twin.save(b"the first").unwrap();
        twin.save(b"the second").unwrap();
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let synced = RefCell::new(BTreeMap::new());
        let sync = |dir: &Path| {
            synced.borrow_mut().insert(dir.to_path_buf(), names(dir));
            Ok(())
        };
        begin_anew_with(state.path(), &sync).unwrap();
        assert_eq!(names(state.path()), ["slots", "trust.old"]);
        let durable = [state.path().to_path_buf(), slots].map(|dir| (dir.clone(), names(&dir)));
        assert_eq!(synced.into_inner(), durable.into());

        let failing = |_: &Path| Err(io::Error::other("the medium is gone"));
        assert!(begin_anew_with(state.path(), &failing).is_err());
    }
}
