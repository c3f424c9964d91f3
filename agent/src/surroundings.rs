//! Where the device stands: battery, heat, memory, load. What a device does not tell is left open.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::serve::Reading;

/// Time between two readings. Context rules dwell for longer than this, and reading costs a few small files.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Batteries and sensors that are looked at of each kind; a board has a handful.
const SOURCES_MAX: usize = 64;

/// Reads what the kernel tells below `root`, which is `/` on a device. The link is for the caller to add.
pub fn read(root: &Path) -> Reading {
    Reading {
        battery_ppm: battery_ppm(&root.join("sys/class/power_supply")),
        temperature_mc: temperature_mc(&root.join("sys/class/thermal")),
        available_bytes: available_bytes(&root.join("proc/meminfo")),
        load_ppm: load_ppm(&root.join("proc/loadavg")),
        link_up: None,
    }
}

/// The numbers in one file each of the folders of a class, as far as they read.
fn numbers(class: &Path, wanted: impl Fn(&Path) -> bool, file: &str) -> Vec<i64> {
    let Ok(folder) = fs::read_dir(class) else { return Vec::new() };
    let sources = folder.flatten().map(|entry| entry.path()).filter(|path| wanted(path)).take(SOURCES_MAX);
    sources.filter_map(|path| fs::read_to_string(path.join(file)).ok()?.trim().parse().ok()).collect()
}

/// Charge of the emptiest battery (Documentation/ABI/testing/sysfs-class-power).
fn battery_ppm(class: &Path) -> Option<u32> {
    // The battery of a mouse says `Device`; only those of the system count.
    let of_system = |path: &Path| {
        let is = |file: &str, word: &str| {
            fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == word)
        };
        is("type", "Battery") && !is("scope", "Device")
    };
    let percent = numbers(class, of_system, "capacity").into_iter().min()?;
    u32::try_from(percent.clamp(0, 100)).ok().map(|percent| percent * 10_000)
}

/// The hottest zone (Documentation/driver-api/thermal/sysfs-api).
fn temperature_mc(class: &Path) -> Option<i64> {
    let zone = |path: &Path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("thermal_zone"))
    };
    numbers(class, zone, "temp").into_iter().max()
}

/// `MemAvailable` of proc(5).
fn available_bytes(meminfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(meminfo).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// The first number of `/proc/loadavg`, the load of the last minute, shared among the cores.
fn load_ppm(loadavg: &Path) -> Option<u64> {
    let text = fs::read_to_string(loadavg).ok()?;
    let load: f64 = text.split_whitespace().next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    Some((load.max(0.0) / cores * 1e6) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_its_kernel_shows_it() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, kind, scope, capacity) in [
            ("BAT0", "Battery", "System", "80"),
            ("BAT1", "Battery", "System", "55"),
            ("mouse", "Battery", "Device", "3"),
            ("AC", "Mains", "System", "0"),
        ] {
            let at = |file: &str| format!("sys/class/power_supply/{name}/{file}");
            put(&at("type"), &format!("{kind}\n"));
            put(&at("scope"), &format!("{scope}\n"));
            put(&at("capacity"), &format!("{capacity}\n"));
        }
        put("sys/class/thermal/thermal_zone0/temp", "41000\n");
        put("sys/class/thermal/thermal_zone1/temp", "63500\n");
        put("sys/class/thermal/cooling_device0/temp", "99000\n");
        put("proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:    1000 kB\n");
        put("proc/loadavg", "0.50 0.40 0.30 1/100 42\n");
        let reading = read(root.path());
        assert_eq!(reading.battery_ppm, Some(550_000));
        assert_eq!(reading.temperature_mc, Some(63_500));
        assert_eq!(reading.available_bytes, Some(1_024_000));
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        assert_eq!(reading.load_ppm, Some((0.5 / cores * 1e6) as u64));
        assert_eq!(reading.link_up, None);
    }

    #[test]
    fn what_is_not_told_is_left_open_and_this_machine_tells_its_memory() {
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(read(nothing.path()), Reading::default());
        assert!(read(Path::new("/")).available_bytes.is_some_and(|bytes| bytes > 0));
    }
}
