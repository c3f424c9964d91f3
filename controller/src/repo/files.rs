//! The read side: the composite check and the static layout.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{Bytes, Check, DeviceId, Digest, RepoFiles, RepoVersions, TaskId};
use dunlin_trust::{RETRAINED, ROOTS_MAX, roles_digest, sha256, task_of};

use super::{RepoError, Repos, disk};

/// Longest name of a target file: digest, dot, and the longest release name.
const NAME_MAX: usize = 200;

impl Repos {
    /// What is new to a device that holds these versions; both timestamps in any case. Of the roles of single tasks it gets
    /// those of the tasks it is assigned, if what it says of those it holds ([`roles_digest`]) is not true of them; all of them
    /// if it says nothing, as agents before them.
    ///
    /// # Errors
    /// There is no repository yet, or a file is damaged.
    pub fn check(
        &self,
        device: &DeviceId,
        image: RepoVersions,
        director: RepoVersions,
        roles: Option<&str>,
        now_ms: u64,
    ) -> Result<Check, RepoError> {
        self.refresh(now_ms)?;
        let held = self.fresh_director(device, now_ms)?;
        let assigned = held.assignment().map(|assignment| assignment.tasks).unwrap_or_default();
        let tasks: BTreeSet<TaskId> = assigned.into_iter().map(|task| task.task).collect();
        let state = self.state()?;
        let (served, last) = (&state.served, state.last);
        // After a key rotation versions may start low again, so "other" counts, not "higher".
        let differs =
            |held: u64, last: u64, file: &Option<Bytes>| file.as_ref().filter(|_| held != last).cloned();
        let there = |role: &String| served.delegated.contains_key(role);
        let offered: BTreeMap<String, u64> = state
            .roles
            .iter()
            .filter(|(role, _)| there(role))
            .map(|(role, no)| (role.clone(), *no))
            .collect();
        let lacks = roles.map(|held| held != roles_digest(&offered, &tasks));
        let wanted = |role: &str| match (task_of(role), lacks) {
            (None, _) => image.retrained != last.retrained,
            (Some(_), None) => true,
            (Some(own), Some(lacks)) => lacks && tasks.iter().any(|task| task.as_str() == own),
        };
        let delegated = served.delegated.iter().filter(|(role, _)| wanted(role));
        let image_files = RepoFiles {
            roots: after(&state.image_roots, image.root),
            timestamp: served.timestamp.clone().unwrap_or_default(),
            snapshot: differs(image.snapshot, last.snapshot, &served.snapshot),
            targets: differs(image.targets, last.targets, &served.targets),
            delegated: delegated.map(|(name, bytes)| (name.clone(), bytes.clone())).collect(),
        };
        let director_files = RepoFiles {
            roots: after(&state.director_roots, director.root),
            timestamp: Bytes(held.timestamp),
            snapshot: (director.snapshot != held.versions.snapshot).then_some(Bytes(held.snapshot)),
            targets: (director.targets != held.versions.targets).then_some(Bytes(held.targets)),
            delegated: Default::default(),
        };
        Ok(Check { image: image_files, director: director_files })
    }

    /// A metadata file of the image repository by its name in the static layout.
    ///
    /// # Errors
    /// It can not be read.
    pub fn image_file(&self, name: &str, now_ms: u64) -> Result<Option<Vec<u8>>, RepoError> {
        if name == "timestamp.json" {
            self.refresh(now_ms)?;
        }
        let state = self.state().ok();
        let own = state.iter().flat_map(|state| state.roles.keys()).map(String::as_str);
        let roles: Vec<&str> = ["root", "snapshot", "targets", RETRAINED].into_iter().chain(own).collect();
        if !is_metadata_name(name, &roles) {
            return Ok(None);
        }
        disk::read(&self.image_folder().join(name))
    }

    /// A metadata file of a device's director repository by its name in the static layout.
    ///
    /// # Errors
    /// It can not be read.
    pub fn director_file(
        &self,
        device: &DeviceId,
        name: &str,
        now_ms: u64,
    ) -> Result<Option<Vec<u8>>, RepoError> {
        if is_metadata_name(name, &["root"]) && name != "timestamp.json" {
            return disk::read(&self.folder.join("director").join(name));
        }
        if !is_metadata_name(name, &["snapshot", "targets"]) {
            return Ok(None);
        }
        if name == "timestamp.json" {
            self.fresh_director(device, now_ms)?;
        }
        disk::read(&self.director_folder(device).join(name))
    }

    /// Keeps the content of a target, under its digest. Publishing metadata that lists it is another step.
    ///
    /// # Errors
    /// The name is no file name, or the file can not be written.
    pub fn put_target(&self, name: &str, content: &[u8]) -> Result<Digest, RepoError> {
        let digest = sha256(content);
        let file = format!("{digest}.{name}");
        if !is_target_file(&file) {
            return Err(RepoError::Name(name.to_owned()));
        }
        let path = self.folder.join("targets").join(file);
        if !path.exists() {
            disk::write_atomic(&path, content)?;
        }
        Ok(digest)
    }

    /// The content of a target by its name in the static layout, `{sha256}.{name}`.
    ///
    /// # Errors
    /// It can not be read.
    pub fn target_file(&self, file: &str) -> Result<Option<Vec<u8>>, RepoError> {
        if is_target_file(file) { disk::read(&self.folder.join("targets").join(file)) } else { Ok(None) }
    }
}

/// Roots above a version, as many as a client follows at once.
pub(super) fn after(roots: &[Bytes], held: u64) -> Vec<Bytes> {
    let held = usize::try_from(held).unwrap_or(usize::MAX).max(1);
    roots.iter().skip(held).take(ROOTS_MAX).cloned().collect()
}

/// `timestamp.json`, or `N.role.json` for one of the roles.
fn is_metadata_name(name: &str, roles: &[&str]) -> bool {
    if name == "timestamp.json" {
        return true;
    }
    let Some((version, role)) = name.strip_suffix(".json").and_then(|stem| stem.split_once('.')) else {
        return false;
    };
    let number = (1..=20).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_digit());
    number && roles.contains(&role)
}

/// `{sha256}.{name}` with nothing in the name that means something to a file system.
fn is_target_file(file: &str) -> bool {
    let Some((digest, name)) = file.split_once('.') else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    file.len() <= NAME_MAX
        && digest.parse::<Digest>().is_ok()
        && !name.is_empty()
        && name.bytes().all(plain)
        && name.ends_with(".json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_layout_reach_the_disk() {
        let roles = ["root", "targets"];
        for good in ["timestamp.json", "1.root.json", "12.targets.json"] {
            assert!(is_metadata_name(good, &roles), "{good}");
        }
        for bad in [
            "",
            "root.json",
            "1.snapshot.json",
            "../1.root.json",
            "1.root.json.tmp",
            "x.root.json",
            ".root.json",
            "1./../root.json",
        ] {
            assert!(!is_metadata_name(bad, &roles), "{bad}");
        }
        let digest = "ab".repeat(32);
        assert!(is_target_file(&format!("{digest}.meter.1.json")));
        for bad in ["/etc/passwd", "../../x", "a.b/c.json", ""] {
            assert!(!is_target_file(&format!("{digest}.{bad}")), "{bad}");
        }
        assert!(!is_target_file("meter.1.json"));
    }
}
