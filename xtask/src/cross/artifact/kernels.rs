//! Which of tract's kernels a build has.
use anyhow::{Context, Result};
use serde_json::Value;

/// The crate of kernels, as Cargo's ids of packages end: its build script leaves out without a word what the C compiler can
/// not assemble.
const CRATE: &str = "#tract-linalg@";
/// The archive that it only tries the assembler with.
const PROBE: &str = "dummy";

/// What that build script found the C compiler able to assemble. Both lists are sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cross) struct Kernels {
    /// Archives of kernels.
    pub(super) archives: Vec<String>,
    /// Switches that let Rust code call those kernels that not every assembler knows.
    pub(super) switches: Vec<String>,
}

impl Kernels {
    /// Those of a build by Cargo's own messages of it, one JSON object a line. Cargo tells of build scripts that ran earlier
    /// too, while the build folder also holds what other builds left.
    pub(in crate::cross) fn told(messages: &str) -> Result<Self> {
        let mut found = Self::default();
        for line in messages.lines() {
            let message: Value =
                serde_json::from_str(line).with_context(|| format!("not of Cargo: {line}"))?;
            let of_script = message["reason"] == "build-script-executed";
            if !of_script || !message["package_id"].as_str().is_some_and(|id| id.contains(CRATE)) {
                continue;
            }
            let words =
                |field: &str| message[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            let archives = words("linked_libs").filter_map(|library| library.strip_prefix("static="));
            found.archives.extend(archives.filter(|name| *name != PROBE).map(str::to_owned));
            found.switches.extend(words("cfgs").filter(|name| name.starts_with("tract_")).map(str::to_owned));
        }
        for list in [&mut found.archives, &mut found.switches] {
            list.sort();
            list.dedup();
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINALG: &str = r#"{"reason":"build-script-executed","package_id":"registry+x#tract-linalg@0.23.9","linked_libs":["static=rvv","static=dummy","dylib=m","static=arm"],"cfgs":["tract_rvv","tract_arm","other"]}"#;

    #[test]
    fn kernels_are_those_that_the_build_script_of_this_build_told_of() {
        let other = LINALG.replace("#tract-linalg@", "#ring@").replace("rvv", "ring");
        let artifact = LINALG.replace("build-script-executed", "compiler-artifact").replace("rvv", "lib");
        let kernels = Kernels::told(&[LINALG, &other, &artifact, LINALG].join("\n")).unwrap();
        assert_eq!(kernels.archives, ["arm", "rvv"]);
        assert_eq!(kernels.switches, ["tract_arm", "tract_rvv"]);
        assert_eq!(Kernels::told(&other).unwrap(), Kernels::default());
        assert!(Kernels::told("Compiling x").is_err());
    }
}
