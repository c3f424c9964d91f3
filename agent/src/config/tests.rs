use super::*;

fn refused(text: &str) -> ConfigError {
    Settings::from_texts(&[("site.toml", text)]).expect_err(text)
}

#[test]
fn the_shipped_file_alone_is_a_valid_configuration() {
    let settings = Settings::from_texts(&[]).unwrap();
    assert_eq!(settings.telemetry.window, Duration::from_secs(60));
    assert_eq!(settings.mqtt.auth, MqttAuth::Challenge);
    assert_eq!(settings.device.arch, crate::device::ARCH);
    assert!(settings.device.cores > 0 && settings.device.ram_bytes > 0);
}

#[test]
fn a_complaint_names_file_key_and_remedy() {
    let table = [
        ("[telemetry]\nwindow = 60\n", "telemetry.window", "units are part of the key"),
        ("[telemetry]\nwindow_s = \"60s\"\n", "telemetry.window_s", "seconds"),
        ("[telemetry]\nwindow_s = 0\n", "telemetry.window_s", "1 to 3600"),
        ("[spool]\nbytes_max = \"64 MB\"\n", "spool.bytes_max", "bytes"),
        ("[spool]\nbytes_max = 5\n", "spool.bytes_max", "1048576"),
        ("[mqtt]\nauth = \"password\"\n", "mqtt.auth", "certificate"),
        ("[api]\nlisten = \"0.0.0.0:80\"\n", "api.listen", "allow_remote"),
        ("[api]\nlisten = \"localhost\"\n", "api.listen", "127.0.0.1"),
        ("[api]\ngrpc_listen = \"0.0.0.0:80\"\n", "api.grpc_listen", "allow_remote"),
        ("[api]\nsocket = \"agent.sock\"\n", "api.socket", "/"),
        ("[api]\nsocket_mode = \"0888\"\n", "api.socket_mode", "0660"),
        ("[api]\ntoken_file = \"token\"\n", "api.token_file", "/"),
        ("[api]\nrequests_max = 0\n", "api.requests_max", "1 to"),
        ("state_dir = \"var\"\n", "state_dir", "/"),
        ("[device]\nclass = \"Pi 4\"\n", "device.class", "raspberry-pi-4"),
        ("[update]\nretry_min_s = 60\nretry_max_s = 5\n", "update.retry_max_s", "at least"),
        ("[serving]\nram_bytes_max = 9999999999999\n", "serving.ram_bytes_max", "0 to"),
        ("[serving.tasks.meter]\ngather_rows_max = 0\n", "serving.tasks.meter.gather_rows_max", "1 to"),
        (
            "[serving.tasks.meter]\ngather_rows_max = 7\n",
            "serving.tasks.meter.gather_rows_max",
            "from 8 rows",
        ),
        ("[nonsense]\nx = 1\n", "nonsense", "shipped agent.toml"),
    ];
    for (text, key, remedy) in table {
        let error = refused(text);
        assert_eq!((error.file.as_str(), error.key.as_str()), ("site.toml", key), "{text}\n{error}");
        assert!(error.remedy.contains(remedy), "{text}\n{error}");
    }
}

#[test]
fn a_complaint_names_the_line_and_the_whole_key() {
    let table = [
        ("\n[telemetry]\nwindow = 60\n", "telemetry.window", "line 3: unknown field `window`"),
        ("telemetry = { window_s = true }\n", "telemetry.window_s", "line 1: invalid type: boolean `true`"),
        ("[telemetry]\nwindow_s = -1\n", "telemetry.window_s", "line 2: invalid value: integer `-1`"),
        ("device.cores = 4294967296\n", "device.cores", "integer `4294967296`, expected u32"),
        ("[device]\nclass = 4\n", "device.class", "line 2: invalid type: integer `4`, expected a string"),
        ("\nmqtt = 5\n", "mqtt", "line 2: invalid type: integer `5`, expected a table"),
        ("[serving.tasks]\nmeter = 1.5\n", "serving.tasks.meter", "invalid type: floating point `1.5`"),
        ("[[spool]]\nbytes_max = 5\n", "spool", "line 1: invalid type: sequence, expected a table"),
        ("[spool]\nbytes_max = 1\nbytes_max = 1\n", "spool.bytes_max", "line 3: duplicate key"),
    ];
    for (text, key, problem) in table {
        let error = refused(text);
        assert_eq!(error.key, key, "{text}\n{error}");
        assert!(error.problem.contains(problem), "{text}\n{error}");
    }
}

#[test]
fn architectures_have_the_names_they_have_elsewhere() {
    use dunlin_protocol::Arch;
    for arch in [Arch::Aarch64, Arch::Armv7, Arch::X86_64, Arch::Riscv64] {
        let text = format!("device.arch = {}\n", serde_json::to_string(&arch).unwrap());
        let warnings = Settings::from_texts(&[("site.toml", &text)]).unwrap().warnings;
        let says = format!("says arch {arch:?},");
        let warned = warnings.iter().any(|warning| warning.contains(&says));
        assert_eq!(warned, arch != crate::device::ARCH, "{text}\n{warnings:?}");
    }
    let elsewhere = serde_json::from_value::<Arch>("pdp11".into()).unwrap_err().to_string();
    let here = refused("device.arch = \"pdp11\"\n").problem;
    assert!(here.ends_with(&elsewhere), "{here}\n{elsewhere}");
}

#[test]
fn whatever_an_environment_variable_holds_is_one_text() {
    let value = "/a \"quoted\" \\ path\nboard = 5 \u{7f}é";
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("agent.toml");
    std::fs::write(&main, "").unwrap();
    let env = [("DUNLIN_STATE_DIR".to_owned(), value.to_owned())];
    let settings = Settings::load(Some(&main), &env).unwrap();
    assert_eq!(settings.state_dir, Path::new(value));
}

#[test]
fn settings_that_can_not_be_looked_for_are_not_absent() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("agent.toml");
    assert!(!is_there(&main).unwrap() && drop_ins(&main).unwrap().is_empty());
    // Links that lead to themselves: nobody can follow them, root included.
    std::os::unix::fs::symlink("agent.toml", &main).unwrap();
    std::os::unix::fs::symlink("agent.d", dir.path().join("agent.d")).unwrap();
    let [file, folder] = [is_there(&main).map(drop), drop_ins(&main).map(drop)].map(Result::unwrap_err);
    assert!(file.file.ends_with("agent.toml") && file.problem.starts_with("can not be read"), "{file}");
    assert!(folder.file.ends_with("agent.d") && folder.problem.starts_with("can not be listed"), "{folder}");
    // A file in the folder's place is no folder without files.
    std::fs::remove_file(&main).unwrap();
    std::fs::remove_file(dir.path().join("agent.d")).unwrap();
    std::fs::write(&main, "").unwrap();
    std::fs::write(dir.path().join("agent.d"), "").unwrap();
    assert!(Settings::load(Some(&main), &[]).unwrap_err().problem.starts_with("can not be listed"));
}

#[test]
fn tasks_are_gathered_and_packed_only_where_the_settings_say_so() {
    let plain = Settings::from_texts(&[]).unwrap();
    assert_eq!(plain.serving, crate::serve::pack::Settings::default());
    let site = "[serving]\nram_bytes_max = 1000\n[serving.tasks.meter]\ngather_rows_max = 8\n";
    let later = "[serving.tasks.meter]\nvalue = 7\ngather_wait_us_max = 2000\n";
    let settings = Settings::from_texts(&[("site.toml", site), ("later.toml", later)]).unwrap().serving;
    assert_eq!((settings.budget.ram_bytes, settings.budget.cpu_ppm), (Some(1000), None));
    let task: dunlin_protocol::TaskId = "meter".parse().unwrap();
    let meter = settings.tasks[&task];
    let gather = meter.gather.unwrap();
    assert_eq!((meter.value, gather.rows_max, gather.wait_max), (7, 8, Duration::from_micros(2000)));
}

#[test]
fn what_the_guide_says_of_serving_is_a_configuration() {
    let guide = include_str!("../../../docs/inference.md");
    let blocks = guide.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<&str> = blocks.filter(|block| block.contains("[serving")).collect();
    assert!(blocks.len() >= 2, "the guide's examples are found");
    for block in blocks {
        let settings = Settings::from_texts(&[("guide.toml", block)]);
        let settings = settings.unwrap_or_else(|error| panic!("{error}\n{block}"));
        assert_ne!(settings.serving, crate::serve::pack::Settings::default(), "{block}");
    }
}

#[test]
fn a_remote_address_is_taken_when_it_was_asked_for() {
    let text = "[api]\nlisten = \"0.0.0.0:80\"\nallow_remote = true\n";
    let open = Settings::from_texts(&[("site.toml", text)]).unwrap();
    assert_eq!(open.warnings.len(), 1, "nobody is asked for a token: {:?}", open.warnings);
    let text = format!("{text}token_file = \"/etc/dunlin/token\"\n");
    assert_eq!(Settings::from_texts(&[("site.toml", &text)]).unwrap().warnings, [""; 0]);
}

#[test]
fn drop_ins_win_in_name_order_and_the_environment_wins_over_all() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("agent.toml");
    let drop = dir.path().join("agent.d");
    std::fs::create_dir(&drop).unwrap();
    std::fs::write(&main, "[telemetry]\nwindow_s = 10\nreport_s = 11\n").unwrap();
    std::fs::write(drop.join("20-b.toml"), "[telemetry]\nwindow_s = 30\n").unwrap();
    std::fs::write(drop.join("10-a.toml"), "[telemetry]\nwindow_s = 20\nreport_s = 21\n").unwrap();
    std::fs::write(drop.join("ignored.txt"), "not toml").unwrap();
    let settings = Settings::load(Some(&main), &[]).unwrap();
    assert_eq!((settings.telemetry.window.as_secs(), settings.telemetry.report.as_secs()), (30, 21));

    let env = [
        ("DUNLIN_TELEMETRY__WINDOW_S", "40"),
        ("DUNLIN_STATE_DIR", "/srv/x"),
        ("DUNLIN_TOKEN", "other program's"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let settings = Settings::load(Some(&main), &env).unwrap();
    assert_eq!(settings.telemetry.window.as_secs(), 40);
    assert_eq!(settings.state_dir, Path::new("/srv/x"));

    let env = [("DUNLIN_TELEMETRY__WINDOW".to_owned(), "40".to_owned())];
    assert!(Settings::load(Some(&main), &env).unwrap_err().file.contains("environment"));
}

#[test]
fn a_named_file_that_is_absent_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Settings::load(Some(&dir.path().join("agent.toml")), &[]).is_err());
}

#[test]
fn a_board_file_ranks_between_defaults_and_site_and_never_sets_the_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let board = dir.path().join("board.toml");
    let other = if crate::device::ARCH == dunlin_protocol::Arch::Armv7 { "aarch64" } else { "armv7" };
    let text = format!(
        "[device]\nclass = \"some-board\"\narch = \"{other}\"\ncores = 3\nram_bytes = 1000000\n[device.budgets]\nmodel_bytes_max = 49152\nlatency_us_max = 20000\n[build]\ntriple = \"x\"\n"
    );
    std::fs::write(&board, text).unwrap();
    let site = format!("board = {:?}\n[device]\ncores = 2\n", board.display().to_string());
    let settings = Settings::from_texts(&[("site.toml", &site)]).unwrap();
    let device = &settings.device;
    assert_eq!((device.class.as_str(), device.cores, device.ram_bytes), ("some-board", 2, 1_000_000));
    assert_eq!(device.budgets.model_bytes_max, 49152);
    assert_eq!(device.arch, crate::device::ARCH);
    assert_eq!(settings.warnings.len(), 1);
}
