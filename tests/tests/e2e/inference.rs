//! The inference API of a running agent, asked by clients that others wrote and by the examples of docs/inference.md.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dunlin_engine::batch::{Progress, progress_file};
use dunlin_tests::agent::Agent;
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::TASK;
use dunlin_tests::process::{Process, wait_for};
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use parquet::data_type::FloatType;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use tokio::process::Command;

#[allow(unreachable_pub, reason = "it stands in the guide as somebody else would write it")]
#[path = "../../foreign/ask.rs"]
mod example;

const LIMIT: Duration = Duration::from_secs(90);
/// Longest run of one client: hundreds of small requests, and Python's start with its libraries.
const CLIENT_LIMIT: Duration = Duration::from_secs(300);
const TOKEN: &str = "an-administrators-token";
/// Rows of a batch of some forty chunks.
const LONG_ROWS: usize = 40_000;
/// More than the time between two syncs of a batch's output.
const PACE: Duration = Duration::from_millis(2500);
const GUIDE: &str = include_str!("../../../docs/inference.md");

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The Python of an environment that `cargo xtask test` has made.
fn python(environment: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("python").join(environment).join("bin/python3");
    assert!(python.exists(), "{} is missing: run `cargo xtask test --only set-up` first", python.display());
    python
}

async fn end_well(what: &str, mut command: Command) {
    let output = tokio::time::timeout(CLIENT_LIMIT, command.kill_on_drop(true).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{what} did not end in {CLIENT_LIMIT:?}")).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
}

/// An agent with every door open, and a committed model.
async fn serving(folder: &Path) -> (Small, String) {
    let mut controller = Controller::new(folder);
    controller.init(CONTROLLER_CONFIG).await.unwrap();
    controller.start().await.unwrap();
    let token = folder.join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    // The first lines belong to the section [api], with which the agent's file begins.
    let config = format!(
        "grpc_listen = \"127.0.0.1:0\"\nsocket = {:?}\nsocket_mode = \"0600\"\nadmin_token_file = {token:?}\nbody_bytes_max = 2097152\n\n{AGENT_CONFIG}",
        folder.join("inference.sock"),
    );
    let mut world = Small::with(folder, &["raspberry-pi-4"], controller, &config).unwrap();
    let release = world.first_model(folder).await.unwrap();
    world.enrol().await.unwrap();
    let agent = format!("http://{}", world.agents[0].api);
    // Enough rows for the probation to end.
    wait_for("the model to answer", LIMIT, async || {
        let answered = example::ask(&agent, &[[0.0; PIXELS]; 200]).await;
        Ok(answered.ok().filter(|(version, _)| version.contains(&release)))
    })
    .await
    .unwrap();
    world.committed(&release, LIMIT).await.unwrap();
    (world, release)
}

fn addresses(agent: &Agent) -> (String, String) {
    let grpc = std::fs::read_to_string(agent.folder.join("run/grpc.addr")).unwrap();
    (agent.api.to_string(), grpc.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_clients_and_the_guides_examples_get_right_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, release) = serving(folder.path()).await;
    let (http, grpc) = addresses(&world.agents[0]);
    let rows: Vec<[f32; PIXELS]> = world.pools.stream.iter().take(40).map(|image| image.pixels).collect();
    let (version, scores) = example::ask(&format!("http://{http}"), &rows).await.unwrap();
    assert_eq!(version, format!("\"{release}\""));
    let given = folder.path().join("given.json");
    let classes = scores.len() / rows.len();
    let text = json!({
        "http": http,
        "grpc": grpc,
        "model": TASK,
        "version": release,
        "token": TOKEN,
        "rows": rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>(),
        "scores": scores.chunks(classes).collect::<Vec<_>>(),
    });
    std::fs::write(&given, text.to_string()).unwrap();

    for (environment, script) in
        [("foreign-inference", "foreign/triton.py"), ("foreign-kserve", "foreign/kserve_client.py")]
    {
        let mut command = Command::new(python(environment));
        command.arg(here(script)).arg(&given);
        end_well(script, command).await;
    }
    mlserver(folder.path(), &http, &rows, &scores).await;
    guide(folder.path(), &world, &grpc).await;
    assert!(world.agents[0].log().unwrap().contains("an administrator changes what is in memory"));
    world.agents[0].stop().await.unwrap();
    world.controller.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_the_same_bytes_from_the_running_agent_from_its_files_and_at_a_desk() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, release) = serving(folder.path()).await;
    let rows: Vec<[f32; PIXELS]> =
        world.pools.stream.iter().cycle().take(1500).map(|image| image.pixels).collect();
    let names: Vec<String> = (0..PIXELS).map(|i| format!("p{i:02}")).collect();
    let line = |row: &[f32; PIXELS]| row.map(|x| x.to_string()).join(",");
    let table: Vec<String> = std::iter::once(names.join(",")).chain(rows.iter().map(line)).collect();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("rows.csv"), table.join("\n")).unwrap();
    let objects: Vec<String> = rows.iter().map(|row| json!(row.as_slice()).to_string()).collect();
    std::fs::write(at("rows.ndjson"), objects.join("\n")).unwrap();

    let batch = |input: &str, output: &str| {
        ["batch", "--task", TASK, "--input", &at(input), "--output", &at(output)].map(ToOwned::to_owned)
    };
    let on_device = async |agent: &Agent, input: &str, output: &str, more: &[&str]| {
        let args = batch(input, output);
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        agent.run(&args).await
    };
    let agent = &world.agents[0];
    on_device(agent, "rows.csv", "running.csv", &[]).await.unwrap();
    on_device(agent, "rows.ndjson", "objects.csv", &["--release", &release]).await.unwrap();
    let other =
        on_device(agent, "rows.csv", "other.csv", &["--release", "meter-first@99"]).await.unwrap_err();
    assert!(other.to_string().contains("meter-first@99"), "{other:#}");
    let again = on_device(agent, "rows.csv", "running.csv", &[]).await.unwrap_err();
    assert!(again.to_string().contains("--resume"), "{again:#}");
    write_parquet(Path::new(&at("rows.parquet")), &names, &rows);
    for (input, output) in [("rows.csv", "desk.csv"), ("rows.parquet", "parquet.csv")] {
        let (input, output) = (at(input), at(output));
        let desk = ["task", "batch", TASK, "--release", &release, "--input", &input, "--output", &output];
        let summary = world.controller.json(&desk).await.unwrap();
        assert_eq!((&summary["rows"], &summary["bad"]), (&json!(1500), &json!(0)), "{input}");
    }

    // Killed in the middle, it goes on where its progress was made durable last.
    let table: Vec<String> =
        std::iter::once(names.join(",")).chain(rows.iter().cycle().take(LONG_ROWS).map(line)).collect();
    std::fs::write(at("long.csv"), table.join("\n")).unwrap();
    on_device(agent, "long.csv", "whole.csv", &[]).await.unwrap();
    let config = agent.folder.join("agent.toml").display().to_string();
    let args = batch("long.csv", "killed.csv");
    let args = ["--config", &config].into_iter().chain(args.iter().map(String::as_str));
    let mut process = Process::start("dunlin-agent", args, Path::new(&at("batch.log"))).unwrap();
    let killed = PathBuf::from(at("killed.csv"));
    until(&mut process, || std::fs::metadata(&killed).is_ok_and(|file| file.len() > 0)).await;
    // The agent answers nothing until the output is to be synced.
    agent.freeze().unwrap();
    tokio::time::sleep(PACE).await;
    agent.thaw().unwrap();
    let progress =
        || -> Option<Progress> { serde_json::from_slice(&std::fs::read(progress_file(&killed)).ok()?).ok() };
    until(&mut process, || progress().is_some_and(|progress| progress.rows > 0)).await;
    process.kill().await.unwrap();
    let left = progress().unwrap();
    assert!(!left.done && left.rows < LONG_ROWS as u64, "{left:?}");
    let again = on_device(agent, "long.csv", "killed.csv", &[]).await.unwrap_err();
    assert!(again.to_string().contains("--resume"), "{again:#}");
    on_device(agent, "long.csv", "killed.csv", &["--resume"]).await.unwrap();
    let whole = std::fs::read_to_string(at("whole.csv")).unwrap();
    assert_eq!(whole.lines().count(), LONG_ROWS + 1);
    assert!(std::fs::read_to_string(&killed).unwrap() == whole, "killed after {} rows", left.rows);

    let explained = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/v1/models/{TASK}:explain", agent.api);
    let answer =
        explained.post(url).json(&json!({ "instances": [rows[0].as_slice()] })).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["features"].as_array().unwrap().len(), PIXELS, "{answer}");
    let output = &answer["explanations"][0]["outputs"][0];
    let parts: f64 = output["contributions"].as_array().unwrap().iter().filter_map(Value::as_f64).sum();
    let gain = output["value"].as_f64().unwrap() - output["base_value"].as_f64().unwrap();
    assert!((parts - gain).abs() < 1e-5, "{answer}");

    world.agents[0].stop().await.unwrap();
    on_device(&world.agents[0], "rows.csv", "stopped.csv", &[]).await.unwrap();
    let want = std::fs::read_to_string(at("running.csv")).unwrap();
    assert_eq!(want.lines().count(), 1501);
    for name in ["objects.csv", "desk.csv", "parquet.csv", "stopped.csv"] {
        assert!(std::fs::read_to_string(at(name)).unwrap() == want, "{name}");
    }
    world.controller.stop().await.unwrap();
}

/// Waits, looking often, while a process works.
async fn until(process: &mut Process, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        process.alive().unwrap();
        assert!(begin.elapsed() < LIMIT, "waited {LIMIT:?} in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writes rows of floats under these names.
fn write_parquet(path: &Path, names: &[String], rows: &[[f32; PIXELS]]) {
    let fields: String = names.iter().map(|name| format!("required float {name}; ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for i in 0..names.len() {
        let values: Vec<f32> = rows.iter().map(|row| row[i]).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<FloatType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// `mlserver infer`, which asks in batches of JSON lines, with JSON inputs and with binary ones.
async fn mlserver(folder: &Path, http: &str, rows: &[[f32; PIXELS]], scores: &[f64]) {
    let input = folder.join("rows.ndjson");
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let x = json!({ "name": "x", "shape": [1, PIXELS], "datatype": "FP32", "data": row.as_slice() });
            json!({ "inputs": [x], "outputs": [{ "name": "scores" }] }).to_string()
        })
        .collect();
    std::fs::write(&input, lines.join("\n") + "\n").unwrap();
    for (batch, binary) in [("1", false), ("8", false), ("8", true)] {
        let output = folder.join("answers.ndjson");
        let program = python("foreign-inference").with_file_name("mlserver");
        let mut command = Command::new(program);
        command.arg("infer").args([
            "--url",
            http,
            "--model-name",
            TASK,
            "--batch-size",
            batch,
            "--workers",
            "2",
        ]);
        command.arg("--input-data-path").arg(&input).arg("--output-data-path").arg(&output);
        if binary {
            command.arg("--binary-data");
        }
        end_well("mlserver infer", command).await;
        let answers = std::fs::read_to_string(&output).unwrap();
        assert_eq!(answers.lines().count(), rows.len(), "{answers}");
        let classes = scores.len() / rows.len();
        for line in answers.lines() {
            let answer: Value = serde_json::from_str(line).unwrap();
            // Answers come in the order in which its workers were done.
            let row = usize::try_from(answer["parameters"]["batch_index"].as_u64().unwrap()).unwrap();
            let got = answer["outputs"][0]["data"].as_array().unwrap_or_else(|| panic!("{line}"));
            let got: Vec<f64> = got.iter().filter_map(Value::as_f64).collect();
            let want = &scores[row * classes..(row + 1) * classes];
            assert!(
                got.len() == classes && got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5),
                "batch {batch}, binary {binary}, row {row}: {line}"
            );
        }
        std::fs::remove_file(&output).unwrap();
    }
}

/// Blocks of one language in the guide.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    GUIDE.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// Runs the guide's shell and Python examples as they stand; its Rust example is the function that this test asks with.
async fn guide(folder: &Path, world: &Small, grpc: &str) {
    let [rust] = blocks("rust")[..] else { panic!("one Rust example") };
    assert_eq!(rust, include_str!("../../foreign/ask.rs"), "the guide shows what is tested");
    let (agent, controller) = (&world.agents[0], &world.controller);
    let programs = dunlin_tests::process::program("dunlin").unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", programs.parent().unwrap().display());
    let python = python("foreign-inference");
    for (language, program, flag) in [("sh", Path::new("bash"), "-euc"), ("python", &python, "-c")] {
        let examples = blocks(language);
        assert!(examples.len() > 1, "the guide's examples are found");
        for example in examples {
            let mut command = Command::new(program);
            command
                .arg(flag)
                .arg(example)
                .current_dir(folder)
                .env("PATH", &path)
                .env("DUNLIN_AGENT_CONFIG", agent.folder.join("agent.toml"))
                .env("DUNLIN_SERVER", controller.url())
                .env("DUNLIN_TOKEN", controller.token())
                .env("DUNLIN_CA", controller.ca())
                .env("AGENT", agent.api.to_string())
                .env("AGENT_GRPC", grpc)
                .env("SOCKET", folder.join("inference.sock"))
                .env("TOKEN", TOKEN);
            end_well(example, command).await;
        }
    }
}
