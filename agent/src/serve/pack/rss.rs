//! Memory really goes back: measured in a process of its own, which does nothing but swap.

use std::process::Command;
use std::sync::Arc;

use dunlin_protocol::{Now, ResourceUse, TaskId};

use crate::serve::onnx::{linear, resident};
use crate::serve::{Limits, Serving};

/// Set in the environment of the process that swaps.
const CHILD: &str = "SWAPS_CHILD";
/// This test, as the test program knows it.
const NAME: &str = "serve::pack::rss::a_hundred_swaps_take_no_more_memory_than_two";
/// Features and classes: four megabytes of weights in the file.
const SIDE: usize = 1000;
/// Most that a hundred swaps may take, per cent of what two do.
const PERCENT_MAX: u64 = 105;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Swaps models under requests, each loaded anew on a thread of its own, as the agent does it; tells its memory.
fn swap() {
    let task: TaskId = "meter".parse().unwrap();
    let serving = Serving::new(Limits::default());
    let files = [1.0, -1.0].map(|sign: f32| {
        let weights: Vec<f32> = (0..SIDE * SIDE).map(|i| sign * (i % 7) as f32 / 1000.0).collect();
        Arc::new(linear(SIDE, SIDE, &weights, false))
    });
    let x = vec![dunlin_engine::of_floats("x", &[1, SIDE as u64], &[0.5; SIDE])];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for swaps in 0..=100_u64 {
        let (of, file) = (task.clone(), Arc::clone(&files[swaps as usize % 2]));
        let load = move || resident(&format!("m@{}", swaps + 1), &of, &file, SIDE);
        let loaded = runtime.block_on(async { tokio::task::spawn_blocking(load).await.unwrap() });
        serving.switch(&task, loaded, None, swaps, false);
        for i in 0..3 {
            let now = Now { mono_ms: swaps, wall_ms: None };
            let answer =
                runtime.block_on(serving.answer(&task, None, i.to_string(), x.clone(), now)).unwrap();
            assert_eq!(answer.generation, swaps);
        }
        // Windows are closed as the agent does it, or those of forty line-ups would be kept.
        let windows = serving.close_windows(Now { mono_ms: swaps, wall_ms: None }, &ResourceUse::default());
        assert_eq!(windows.len(), 1);
        if swaps == 2 || swaps == 100 {
            println!("after {swaps} swaps: {} KiB", resident_kib());
        }
    }
}

#[test]
fn a_hundred_swaps_take_no_more_memory_than_two() {
    if std::env::var_os(CHILD).is_some() {
        return swap();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(super::ALLOCATOR)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{told}{}", String::from_utf8_lossy(&child.stderr));
    let after = |swaps: u32| -> u64 {
        let head = format!("after {swaps} swaps: ");
        let line = told.lines().find_map(|line| line.split_once(&head)).expect(&told).1;
        line.trim_end_matches(" KiB").parse().unwrap()
    };
    let (two, hundred) = (after(2), after(100));
    assert!(hundred * 100 <= two * PERCENT_MAX, "{two} KiB after 2 swaps, {hundred} KiB after 100");
}
