//! Categories: `LabelEncoder` and `OneHotEncoder`.

use std::collections::BTreeSet;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{NodeProto, TensorProto};

use super::arithmetic::{input, output};
use super::graph::{Editor, int};
use super::tensor;
use super::words::Text;
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, unsupported};
use crate::known;

/// Words there may be for each key of a table over all of them, and some more for small tables.
const TABLE_FACTOR: usize = 4;
const TABLE_MIN: usize = 64;
/// The version of `ai.onnx.ml` from which on a key may be no number.
const NAN_KEYS: i64 = 4;

/// Keys or values of an encoder.
#[derive(Debug, Clone)]
struct Column {
    kind: DataType,
    values: Values,
}

#[derive(Debug, Clone)]
enum Values {
    /// Codes of words.
    Words(Vec<i64>),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
}

impl Column {
    fn len(&self) -> usize {
        match &self.values {
            Values::Words(all) | Values::Ints(all) => all.len(),
            Values::Floats(all) => all.len(),
        }
    }

    fn is_text(&self) -> bool {
        matches!(self.values, Values::Words(_))
    }

    /// A constant of the values at `places`.
    fn constant(&self, places: impl Iterator<Item = usize>) -> TensorProto {
        let mut made = TensorProto { data_type: self.kind as i32, ..TensorProto::default() };
        match &self.values {
            Values::Words(all) | Values::Ints(all) => made.int64_data = places.map(|i| all[i]).collect(),
            Values::Floats(all) => made.double_data = places.map(|i| all[i]).collect(),
        }
        made.dims = vec![(made.int64_data.len() + made.double_data.len()) as i64];
        // Each type has its own field in the file.
        if self.kind == DataType::Float {
            made.float_data = std::mem::take(&mut made.double_data).into_iter().map(|x| x as f32).collect();
        } else if matches!(self.kind, DataType::Int32 | DataType::Int16) {
            made.int32_data = std::mem::take(&mut made.int64_data).into_iter().map(|n| n as i32).collect();
        }
        made
    }

    fn of_tensor(editor: &mut Editor, at: &NodeProto, tensor: &TensorProto) -> Result<Self, EngineError> {
        let refused = || unsupported("this type of categories", node_name(at), "use text, int64 or float32");
        let kind = DataType::try_from(tensor.data_type).map_err(|_| refused())?;
        if kind == DataType::String {
            let codes = editor.words.all(&tensor.string_data)?;
            return Ok(Self { kind: DataType::Int64, values: Values::Words(codes) });
        }
        let values = match (tensor::ints(tensor), tensor::floats(tensor)) {
            (Some(ints), _) if matches!(kind, DataType::Int64 | DataType::Int32 | DataType::Int16) => {
                Values::Ints(ints)
            }
            (_, Some(floats)) => Values::Floats(floats),
            (Some(_) | None, None) => return Err(refused()),
        };
        Ok(Self { kind, values })
    }
}

/// The attribute `{prefix}_strings`, `_int64s`, `_floats` or `_tensor`, whichever there is.
fn column(editor: &mut Editor, node: &NodeProto, prefix: &str) -> Result<Option<Column>, EngineError> {
    let all = Attributes { node };
    let name = |what: &str| format!("{prefix}_{what}");
    if let Some(tensor) = all.tensor(&name("tensor")) {
        return Column::of_tensor(editor, node, tensor).map(Some);
    }
    let (kind, values) = if !all.strings(&name("strings")).is_empty() {
        (DataType::Int64, Values::Words(editor.words.all(all.strings(&name("strings")))?))
    } else if !all.ints(&name("int64s")).is_empty() {
        (DataType::Int64, Values::Ints(all.ints(&name("int64s")).to_vec()))
    } else if !all.floats(&name("floats")).is_empty() {
        let floats = all.floats(&name("floats")).iter().map(|&x| f64::from(x)).collect();
        (DataType::Float, Values::Floats(floats))
    } else {
        return Ok(None);
    };
    Ok(Some(Column { kind, values }))
}

/// Keys and values, and the values once more with the answer for every other key at the end.
fn table(editor: &mut Editor, node: &NodeProto) -> Result<(Column, Column), EngineError> {
    let all = Attributes { node };
    let lacks = |what: &str| malformed(&format!("label encoder {:?} has no {what}", node_name(node)));
    let (keys, mut values) = match all.strings("classes_strings") {
        [] => {
            let keys = column(editor, node, "keys")?.ok_or_else(|| lacks("keys"))?;
            (keys, column(editor, node, "values")?.ok_or_else(|| lacks("values"))?)
        }
        // Operator set 1: words and their places, in the direction of the input. The last of equal words counts.
        classes => {
            let words = editor.words.all(classes)?.into_iter().rev().collect();
            let words = Column { kind: DataType::Int64, values: Values::Words(words) };
            let places = Values::Ints((0..classes.len() as i64).rev().collect());
            let places = Column { kind: DataType::Int64, values: places };
            if editor.words.text(input(node, 0)?).is_some() { (words, places) } else { (places, words) }
        }
    };
    if keys.len() != values.len() {
        return Err(malformed(&format!(
            "label encoder {:?} has {} keys and {} values",
            node_name(node),
            keys.len(),
            values.len()
        )));
    }
    let other = match all.tensor("default_tensor") {
        Some(tensor) => Some(Column::of_tensor(editor, node, tensor)?),
        None => None,
    };
    match (&mut values.values, other.map(|c| c.values)) {
        (Values::Words(all), Some(Values::Words(other))) => all.extend(other.first()),
        (Values::Ints(all), Some(Values::Ints(other))) => all.extend(other.first()),
        (Values::Floats(all), Some(Values::Floats(other))) => all.extend(other.first()),
        (Values::Words(codes), None) => {
            let text = all.find("default_string").map_or(&b"_Unused"[..], |a| a.s.as_slice());
            codes.push(editor.words.code(text)?);
        }
        (Values::Ints(ints), None) => ints.push(all.int("default_int64", -1)),
        (Values::Floats(floats), None) => floats.push(f64::from(all.float("default_float", -0.0))),
        (Values::Words(_) | Values::Ints(_) | Values::Floats(_), Some(_)) => {
            return Err(malformed(&format!("the default of {:?} is of another type", node_name(node))));
        }
    }
    if values.len() != keys.len() + 1 {
        return Err(malformed(&format!("the default of {:?} is empty", node_name(node))));
    }
    Ok((keys, values))
}

/// `LabelEncoder`: a table is looked up, by the code of a word or by the place of the first equal key.
pub(super) fn labels(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let (x, made) = (input(node, 0)?, output(node)?);
    let (keys, values) = table(editor, node)?;
    if keys.is_text() != editor.words.text(x).is_some() {
        return Err(malformed(&format!("the keys of {:?} are not what it is given", node_name(node))));
    }
    let words = editor.words.len() + 1;
    let other = keys.len();
    match &keys.values {
        Values::Words(codes) if words <= TABLE_FACTOR * codes.len() + TABLE_MIN => {
            // By code; words that come to be known later have codes above these.
            let mut places = vec![other; words + 1];
            for (place, &code) in codes.iter().enumerate().rev() {
                places[code as usize] = place;
            }
            let table = values.constant(places.into_iter());
            let table = editor.add(table);
            let last = editor.ints(&[], &[words as i64]);
            let code = editor.op("Min", &[x, &last], vec![])?;
            editor.op_to("Gather", &[&table, &code], vec![], made)?;
        }
        Values::Words(_) | Values::Ints(_) | Values::Floats(_) => {
            let place = first_equal(editor, x, &keys)?;
            let table = editor.add(values.constant(0..=other));
            editor.op_to("Gather", &[&table, &place], vec![], made)?;
        }
    }
    if values.is_text() {
        editor.words.mark(made, Text::Known);
    }
    editor.rewrites.add("ai.onnx.ml/LabelEncoder", "Gather from a table", node_name(node));
    Ok(())
}

/// The place of the first key that equals each value, or the number of keys.
fn first_equal(editor: &mut Editor, x: &str, keys: &Column) -> Result<String, EngineError> {
    let n = keys.len();
    // One more column, in which nothing is looked for: it wins where no key does.
    let constant = editor.add(keys.constant((0..n).chain([0])));
    let x = editor.unsqueeze(x, -1)?;
    let mut hits = editor.op("Equal", &[&x, &constant], vec![])?;
    if let Values::Floats(all) = &keys.values
        && editor.ml >= NAN_KEYS
        && all.iter().any(|key| key.is_nan())
    {
        // Here, unlike in arithmetic, what is no number is a key like others.
        let mask = TensorProto {
            dims: vec![n as i64 + 1],
            data_type: DataType::Bool as i32,
            int32_data: all.iter().chain([&0.0]).map(|key| i32::from(key.is_nan())).collect(),
            ..TensorProto::default()
        };
        let mask = editor.add(mask);
        let missing = editor.is_nan(&x)?;
        hits = editor.op("Where", &[&missing, &mask, &hits], vec![])?;
    }
    let hits = editor.cast(&hits, DataType::Float)?;
    let mut floor = vec![0.0; n + 1];
    floor[n] = 0.5;
    let floor = editor.floats(&[n + 1], &floor);
    let hits = editor.op("Max", &[&hits, &floor], vec![])?;
    editor.op("ArgMax", &[&hits], vec![int("axis", -1), int("keepdims", 0)])
}

/// `OneHotEncoder`: one column for each category.
pub(super) fn one_hot(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    let (x, made) = (input(node, 0)?, output(node)?);
    let is_text = !all.strings("cats_strings").is_empty();
    if is_text != editor.words.text(x).is_some() {
        return Err(malformed(&format!("the categories of {:?} are not what it is given", node_name(node))));
    }
    let mut missing = None;
    let (x, categories) = if is_text {
        (x.to_owned(), editor.words.all(all.strings("cats_strings"))?)
    } else {
        missing = Some(editor.is_nan(x)?);
        (editor.cast(x, DataType::Int64)?, all.ints("cats_int64s").to_vec())
    };
    if categories.is_empty() {
        return Err(malformed(&format!("one-hot encoder {:?} has no categories", node_name(node))));
    }
    if categories.iter().collect::<BTreeSet<_>>().len() != categories.len() {
        return Err(unsupported(
            "ai.onnx.ml/OneHotEncoder with a category that is there twice",
            node_name(node),
            "name each category once",
        ));
    }
    let x = editor.unsqueeze(&x, -1)?;
    let categories = editor.ints(&[categories.len()], &categories);
    let mut hits = editor.op("Equal", &[&x, &categories], vec![])?;
    if let Some(missing) = missing {
        // As an integer it would be zero, which may be a category.
        let missing = editor.unsqueeze(&missing, -1)?;
        let number = editor.op("Not", &[&missing], vec![])?;
        hits = editor.op("And", &[&hits, &number], vec![])?;
    }
    if all.int("zeros", 1) != 0 {
        editor.op_to("Cast", &[&hits], vec![int("to", DataType::Float as i64)], made)?;
    } else {
        // What is no category was an error where the model comes from, and is one here.
        let hits = editor.cast(&hits, DataType::Float)?;
        editor.op_of(known::DOMAIN, known::NAME, &[&hits], made)?;
    }
    editor.rewrites.add("ai.onnx.ml/OneHotEncoder", "Equal and Cast", node_name(node));
    Ok(())
}
