#![allow(clippy::unwrap_used, reason = "tests")]
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use dunlin_engine::Model;
use dunlin_engine::batch::{Csv, Format, Job, Predict, PredictError, Progress, Source, Watch, run};
use dunlin_engine::onnx_pb as pb;
use dunlin_protocol::{
    Blob, Bundle, Digest, FeatureMeta, Hard, Lineage, ModelSignature, TaskType, TensorData,
};
use prost::Message;

use super::*;

/// `y = x`, three columns.
fn onnx() -> Vec<u8> {
    let port = |name: &str| {
        let dim = |value| pb::tensor_shape_proto::Dimension { denotation: String::new(), value };
        let columns = pb::tensor_shape_proto::dimension::Value::DimValue(3);
        let shape = pb::TensorShapeProto { dim: vec![dim(None), dim(Some(columns))] };
        let tensor = pb::type_proto::Tensor { elem_type: 1, shape: Some(shape) };
        let kind = pb::type_proto::Value::TensorType(tensor);
        pb::ValueInfoProto {
            name: name.into(),
            r#type: Some(pb::TypeProto { denotation: String::new(), value: Some(kind) }),
            doc_string: String::new(),
        }
    };
    let node = pb::NodeProto {
        op_type: "Identity".into(),
        input: vec!["x".into()],
        output: vec!["y".into()],
        ..Default::default()
    };
    let graph = pb::GraphProto {
        name: "g".into(),
        node: vec![node],
        input: vec![port("x")],
        output: vec![port("y")],
        ..Default::default()
    };
    let set = pb::OperatorSetIdProto { domain: String::new(), version: 17 };
    pb::ModelProto { ir_version: 8, opset_import: vec![set], graph: Some(graph), ..Default::default() }
        .encode_to_vec()
}

fn bundle(model: &Model) -> Bundle {
    let blob = Blob { digest: Digest([0; 32]), length: 1 };
    Bundle {
        format: 1,
        release: "m@1".parse().unwrap(),
        task: "meter".parse().unwrap(),
        task_type: TaskType::Regression,
        family: "imported".into(),
        model: blob,
        golden: blob,
        profile: None,
        signature: ModelSignature {
            inputs: model.inputs().to_vec(),
            outputs: model.outputs().to_vec(),
            features: ["a", "b", "c"]
                .map(|name| FeatureMeta { name: name.into(), unit: String::new() })
                .to_vec(),
            labels: vec![],
        },
        hard: Hard {
            arch: Default::default(),
            classes: Default::default(),
            ops: model.ops(),
            bundle_bytes: 1,
            ram_bytes: 1,
            min_agent: String::new(),
        },
        latency_us: 10,
        metrics: Default::default(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    }
}

const ROWS: usize = 5000;

fn row(i: usize) -> (f32, i64, f64) {
    (i as f32 / 7.0, i as i64 - 2500, (i * i) as f64 / 3.0)
}

/// Columns of three types in another order than the model's, a further one, and several row groups.
fn parquet(path: &Path) {
    let schema = "message rows { required binary note (UTF8); required double c; required float a; optional int64 b; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for group in (0..ROWS).collect::<Vec<_>>().chunks(1700) {
        let mut rows = writer.next_row_group().unwrap();
        let notes: Vec<ByteArray> =
            group.iter().map(|i| ByteArray::from(format!("row {i}").into_bytes())).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&notes, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<f64> = group.iter().map(|&i| row(i).2).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<f32> = group.iter().map(|&i| row(i).0).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<FloatType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<i64> = group.iter().map(|&i| row(i).1).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&values, Some(&vec![1; values.len()]), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.close().unwrap();
}

fn csv(path: &Path) {
    let rows = (0..ROWS).map(row).map(|(a, b, c)| format!("{a:?},{b},{c:?}\n"));
    std::fs::write(path, std::iter::once("a,b,c\n".to_owned()).chain(rows).collect::<String>()).unwrap();
}

struct Always;

impl Watch for Always {
    fn is_due(&mut self) -> bool {
        true
    }

    fn saved(&mut self, _: &Progress) {}
}

/// Answers so many chunks.
struct Stops<'a>(&'a Model, usize);

impl Predict for Stops<'_> {
    fn predict(&mut self, inputs: &[TensorData]) -> Result<Vec<TensorData>, PredictError> {
        self.1 = self.1.checked_sub(1).ok_or_else(|| PredictError::Gone("stopped".into()))?;
        (&mut &*self.0).predict(inputs)
    }
}

fn answers(input: &Path, output: &Path, stops: &[usize]) -> String {
    let model = Model::load(&onnx(), None).unwrap();
    let bundle = bundle(&model);
    let columns = Columns::of(&bundle).unwrap();
    let job = Job {
        task: bundle.task.clone(),
        release: bundle.release.clone(),
        input: Fingerprint::of(input).unwrap(),
        output: output.to_owned(),
        format: Format::Csv,
        resume: true,
        skip_bad: false,
    };
    let open = |from: Position| {
        let source: Box<dyn Source> = match form(input).unwrap() {
            Form::Parquet => Box::new(Parquet::open(input, &columns, from)?),
            Form::Lines(_) => Box::new(Csv::open(input, &columns, from)?),
        };
        Ok(source)
    };
    for &chunks in stops {
        assert!(run(&job, &columns, open, &mut Stops(&model, chunks), &mut Always).is_err());
    }
    let done = run(&job, &columns, open, &mut &model, &mut Always).unwrap();
    assert_eq!((done.rows, done.bad), (ROWS as u64, 0));
    std::fs::read_to_string(output).unwrap()
}

#[test]
fn parquet_gives_the_same_answers_as_csv_and_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    csv(&at("rows.csv"));
    parquet(&at("rows.parquet"));
    let want = answers(&at("rows.csv"), &at("of-csv.csv"), &[]);
    assert!(answers(&at("rows.parquet"), &at("of-parquet.csv"), &[]) == want);
    assert!(answers(&at("rows.parquet"), &at("stopped.csv"), &[0, 1, 1, 2]) == want);
    assert_eq!(want.lines().next(), Some("row,y.0,y.1,y.2"));
}

#[test]
fn a_parquet_file_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let model = Model::load(&onnx(), None).unwrap();
    let mut other = bundle(&model);
    parquet(&at("rows.parquet"));
    other.signature.features[1].name = "d".into();
    let lacking = Parquet::open(&at("rows.parquet"), &Columns::of(&other).unwrap(), Position::default());
    assert!(lacking.unwrap_err().to_string().contains("\"d\""));
    // Text where the model takes numbers.
    other.signature.features[1].name = "note".into();
    let mut text =
        Parquet::open(&at("rows.parquet"), &Columns::of(&other).unwrap(), Position::default()).unwrap();
    let first = text.next().unwrap().unwrap();
    assert!(first.cells.unwrap_err().contains("\"note\""));
    csv(&at("torn.parquet"));
    let torn =
        Parquet::open(&at("torn.parquet"), &Columns::of(&bundle(&model)).unwrap(), Position::default());
    assert!(matches!(torn, Err(BatchError::File { .. })));
    let request = Request { input: at("rows.txt"), output: at("a.csv"), resume: false, skip_bad: false };
    let told = &mut |_: &Progress| {};
    let named = predict(&bundle(&model), &at("model.onnx"), Path::new("/nowhere"), &request, told);
    assert!(matches!(named, Err(BatchError::Table(_))));
}
