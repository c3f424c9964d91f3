//! A value against a form of the document: nothing that the form does not name, and nothing missing that it requires.
use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex};

use serde_json::Value;

/// The document of this build.
pub(crate) static DOCUMENT: LazyLock<Document> = LazyLock::new(Document::of_this_build);

pub(crate) struct Document {
    json: Value,
    /// Properties, branches and words that some value had.
    met: Mutex<BTreeSet<String>>,
}

fn matches(template: &str, path: &str) -> bool {
    let (template, path): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(&path).all(|(part, word)| part.starts_with('{') || part == word)
}

fn words(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

impl Document {
    pub(crate) fn of_this_build() -> Self {
        let json = serde_json::to_value(dunlin_controller::api::document()).unwrap();
        Self { json, met: Mutex::default() }
    }

    /// Asserts that a route declares this answer, and that the body is of the form that it gives to it. Paths that are no
    /// route, and methods that a path does not take, are left out.
    pub(crate) fn assert_answer(&self, method: &str, path: &str, status: u16, body: &Value) {
        let path = path.split('?').next().unwrap_or_default();
        let routes = self.json["paths"].as_object().unwrap();
        let found = routes.iter().find(|(template, _)| matches(template, path));
        let Some(operation) = found.and_then(|(_, item)| item.get(method.to_lowercase())) else { return };
        let answer = &operation["responses"][status.to_string()];
        let answer = answer["$ref"].as_str().map_or(answer, |name| self.resolve(name).0);
        assert!(answer.is_object(), "{method} {path} does not declare {status}: {body}");
        if let Some(content) = answer["content"].get("application/json") {
            let fits = self.fits(&content["schema"], body, "");
            assert_eq!(fits, Ok(()), "{method} {path} {status}: {body}");
        }
    }

    /// Asserts that what a verb printed is of the form of one of the routes that it asks, as `dunlin roles` lists them.
    pub(crate) fn assert_printed(&self, args: &[&str], printed: &Value) {
        let page = dunlin_controller::cli::roles::page();
        let words = args.join(" ");
        let asked = page.lines().find_map(|line| {
            let (verb, rest) = line.strip_prefix("| `dunlin ")?.split_once("` |")?;
            (words == verb || words.starts_with(&format!("{verb} "))).then_some(rest)
        });
        // What works on files has forms of its own.
        let Some(asked) = asked else { return };
        let bodies = asked.split('`').skip(1).step_by(2).flat_map(|route| {
            let (method, path) = route.split_once(' ').unwrap();
            let answers = self.json["paths"][path][method.to_lowercase()]["responses"].as_object().unwrap();
            answers.iter().filter(|(status, _)| status.starts_with('2')).map(|(_, answer)| answer)
        });
        let fits: Vec<_> = bodies
            .map(|answer| self.fits(&answer["content"]["application/json"]["schema"], printed, ""))
            .collect();
        assert!(fits.contains(&Ok(())), "{words}: {fits:?}: {printed}");
    }

    /// Asserts that a value is of a form by name.
    pub(crate) fn assert_is(&self, name: &str, value: &Value) {
        assert_eq!(self.fits(&Self::named(name), value, ""), Ok(()), "{name}: {value}");
    }

    fn named(name: &str) -> Value {
        serde_json::json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    fn resolve(&self, reference: &str) -> (&Value, String) {
        let name = reference.rsplit('/').next().unwrap_or_default().to_owned();
        (self.json.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference}")), name)
    }

    fn meet(&self, at: String) {
        self.met.lock().unwrap().insert(at);
    }

    fn fits(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let known = self.known(schema, value, at)?;
        let mut keys = value.as_object().into_iter().flat_map(|object| object.keys());
        keys.find(|key| !known.contains(*key)).map_or(Ok(()), |key| Err(format!("{at} does not name {key}")))
    }

    /// The keys of an object that the schema names; an error if the value is of another form.
    fn known(&self, schema: &Value, value: &Value, at: &str) -> Result<BTreeSet<String>, String> {
        if let Some(reference) = schema["$ref"].as_str() {
            let (schema, name) = self.resolve(reference);
            return self.known(schema, value, &name);
        }
        if let Some(parts) = schema["allOf"].as_array() {
            let known = parts.iter().map(|part| self.known(part, value, at));
            return Ok(known.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect());
        }
        if let Some(branches) = schema["oneOf"].as_array() {
            let tried: Vec<_> = branches
                .iter()
                .enumerate()
                .map(|(i, branch)| (i, self.known(branch, value, &format!("{at}/{i}"))))
                .collect();
            let fitting = tried.iter().filter_map(|(i, known)| Some((i, known.as_ref().ok()?)));
            let (i, known) = fitting
                .max_by_key(|(_, known)| known.len())
                .ok_or_else(|| format!("{at} has no branch for {value}: {tried:?}"))?;
            self.meet(format!("{at}/{i}"));
            return Ok(known.clone());
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let mut kinds = words(&schema["type"]).chain(schema["type"].as_str());
        if !kinds.any(|one| one == kind || (one, kind) == ("number", "integer")) {
            return Err(format!("{at} is {}, not {value}", schema["type"]));
        }
        match value {
            Value::Object(object) => self.object(schema, object, at),
            Value::Array(items) => {
                let all = schema["prefixItems"].as_array();
                for (i, item) in items.iter().enumerate() {
                    let of = all.map_or(Some(&schema["items"]), |all| all.get(i));
                    self.fits(of.ok_or_else(|| format!("{at} is too long"))?, item, &format!("{at}[]"))?;
                }
                Ok(BTreeSet::new())
            }
            Value::String(word) => {
                if schema["enum"].is_array() {
                    if !words(&schema["enum"]).any(|one| one == word) {
                        return Err(format!("{at} does not name {word}"));
                    }
                    self.meet(format!("{at}={word}"));
                }
                Ok(BTreeSet::new())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(BTreeSet::new()),
        }
    }

    fn object(
        &self,
        schema: &Value,
        object: &serde_json::Map<String, Value>,
        at: &str,
    ) -> Result<BTreeSet<String>, String> {
        if let Some(key) = words(&schema["required"]).find(|key| !object.contains_key(*key)) {
            return Err(format!("{at} asks for {key}"));
        }
        let (named, others) = (schema["properties"].as_object(), &schema["additionalProperties"]);
        let is_free = named.is_none() && others.is_null();
        let mut known = BTreeSet::new();
        for (key, value) in object {
            if let Some(schema) = named.and_then(|named| named.get(key)) {
                self.fits(schema, value, &format!("{at}.{key}"))?;
                self.meet(format!("{at}.{key}"));
            } else if others.is_object() {
                self.fits(others, value, &format!("{at}{{}}"))?;
            } else if !is_free {
                continue;
            }
            known.insert(key.clone());
        }
        Ok(known)
    }

    /// What the form of this name promises and no value had so far.
    pub(crate) fn unmet(&self, name: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        self.promises(&Self::named(name), "", &mut BTreeSet::new(), &mut all);
        &all - &self.met.lock().unwrap()
    }

    fn promises(&self, schema: &Value, at: &str, walked: &mut BTreeSet<String>, all: &mut BTreeSet<String>) {
        if let Some(reference) = schema["$ref"].as_str() {
            let (schema, name) = self.resolve(reference);
            // Each form is walked once.
            if walked.insert(name.clone()) {
                self.promises(schema, &name, walked, all);
            }
            return;
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.promises(part, at, walked, all);
        }
        for (i, branch) in schema["oneOf"].as_array().into_iter().flatten().enumerate() {
            if branch["type"] != "null" {
                all.insert(format!("{at}/{i}"));
                self.promises(branch, &format!("{at}/{i}"), walked, all);
            }
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            all.insert(format!("{at}.{key}"));
            self.promises(property, &format!("{at}.{key}"), walked, all);
        }
        for item in schema["prefixItems"].as_array().into_iter().flatten().chain(schema.get("items")) {
            self.promises(item, &format!("{at}[]"), walked, all);
        }
        if schema["additionalProperties"].is_object() {
            self.promises(&schema["additionalProperties"], &format!("{at}{{}}"), walked, all);
        }
        all.extend(words(&schema["enum"]).map(|word| format!("{at}={word}")));
    }
}
