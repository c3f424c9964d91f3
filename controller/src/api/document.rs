//! What every route of the document has in common: who may ask, and how it refuses. Derived from [`access::ROUTES`] and from
//! what a route takes, so that no handler need say it again.
use axum::http::StatusCode;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response, ResponseBuilder};

use super::access::{self, Access};
use super::auth::Scope;

/// The scheme of operators.
const TOKEN: &str = "token";
/// The scheme of devices.
const CERTIFICATE: &str = "certificate";

/// What a refusal says wherever it comes, unless the handler has more to say.
const REFUSALS: &[(StatusCode, &str)] = &[
    (StatusCode::BAD_REQUEST, "the request makes no sense"),
    (StatusCode::UNAUTHORIZED, "no valid token, claim or certificate came with it"),
    (StatusCode::FORBIDDEN, "who asks is known and may not"),
    (StatusCode::NOT_FOUND, "what is named does not exist"),
    (StatusCode::CONFLICT, "it is not in a state that allows this"),
    (StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than the route takes"),
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is not said to be JSON"),
    (StatusCode::RANGE_NOT_SATISFIABLE, "the range begins after the end"),
    (StatusCode::UNPROCESSABLE_ENTITY, "the body is not of the form or sense that is asked for"),
    (
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests or wrong secrets came from this address; Retry-After says when to come again",
    ),
    (StatusCode::INTERNAL_SERVER_ERROR, "the controller failed; its log holds the cause"),
    (StatusCode::INSUFFICIENT_STORAGE, "the controller's disk is full; nothing was taken in"),
];

/// Completes what the handlers declare.
pub(super) fn completed(mut document: OpenApi) -> OpenApi {
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of an operator: dunlin token create"))
        .build();
    let certificate = SecurityScheme::MutualTls {
        description: Some("The certificate that a device was given when it enrolled".to_owned()),
        deprecated: None,
        extensions: None,
    };
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(TOKEN, SecurityScheme::Http(token));
    components.add_security_scheme(CERTIFICATE, certificate);
    let refusals = REFUSALS.iter().map(|(status, says)| (name(*status), refusal(says).into()));
    components.responses.extend(refusals);
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            if let Some(access) = access::of(method, path) {
                complete(operation, method, access);
            }
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("GET", &mut item.get),
        ("PUT", &mut item.put),
        ("POST", &mut item.post),
        ("DELETE", &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

fn complete(operation: &mut Operation, method: &str, access: Access) {
    // Handlers of two nouns are called alike, and an id is there once.
    if let (Some(tags), Some(id)) = (&operation.tags, &mut operation.operation_id) {
        *id = [tags.as_slice(), &[std::mem::take(id)]].concat().join("_");
    }
    let schemes: &[&str] = match access {
        Access::Everybody => &[],
        Access::DeviceOrViewer => &[TOKEN, CERTIFICATE],
        Access::Role(_) => &[TOKEN],
    };
    let no_scopes: [&str; 0] = [];
    operation.security =
        Some(schemes.iter().map(|name| SecurityRequirement::new(*name, no_scopes)).collect());

    let body = operation.request_body.as_ref().and_then(|body| match body {
        RefOr::T(body) => Some(body),
        RefOr::Ref(_) => None,
    });
    let takes_json = body.is_some_and(|body| body.content.contains_key("application/json"));
    let may_be_kept_out = match access {
        Access::Everybody => false,
        Access::DeviceOrViewer => true,
        Access::Role(scopes) => !scopes.contains(&Scope::Viewer),
    };
    let refusals = [
        (StatusCode::BAD_REQUEST, operation.parameters.is_some() || body.is_some()),
        (StatusCode::UNAUTHORIZED, access != Access::Everybody),
        (StatusCode::FORBIDDEN, may_be_kept_out),
        (StatusCode::PAYLOAD_TOO_LARGE, body.is_some()),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, takes_json),
        (StatusCode::UNPROCESSABLE_ENTITY, takes_json),
        (StatusCode::TOO_MANY_REQUESTS, access != Access::Everybody),
        (StatusCode::INTERNAL_SERVER_ERROR, true),
        (StatusCode::INSUFFICIENT_STORAGE, method != "GET"),
    ];
    let responses = &mut operation.responses.responses;
    for (status, _) in refusals.into_iter().filter(|(_, comes)| *comes) {
        responses.entry(status.as_str().to_owned()).or_insert_with(|| Response::default().into());
    }
    for (status, response) in responses {
        let (Ok(status), RefOr::T(told)) = (status.parse::<StatusCode>(), &mut *response) else { continue };
        match (status >= StatusCode::BAD_REQUEST, told.description.is_empty()) {
            (true, true) => *response = Ref::from_response_name(name(status)).into(),
            (true, false) => told.content = refusal("").content,
            // The specification asks for one.
            (false, true) => told.description = "done".to_owned(),
            (false, false) => {}
        }
    }
}

fn name(status: StatusCode) -> String {
    status.canonical_reason().unwrap_or_default().replace(' ', "")
}

fn refusal(description: &str) -> Response {
    let body = Content::new(Some(Ref::from_schema_name("ErrorBody")));
    ResponseBuilder::new().description(description).content("application/json", body).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::api::access::ROUTES;

    fn operation<'a>(document: &'a Value, method: &str, path: &str) -> &'a Value {
        &document["paths"][path][method.to_lowercase()]
    }

    #[test]
    fn every_route_but_the_public_ones_names_its_scheme_and_all_declare_their_refusals() {
        let document = serde_json::to_value(crate::api::document()).unwrap();
        let schemes = &document["components"]["securitySchemes"];
        assert_eq!((&schemes[TOKEN]["type"], &schemes[TOKEN]["scheme"]), (&"http".into(), &"bearer".into()));
        assert_eq!(schemes[CERTIFICATE]["type"], "mutualTLS");
        let mut ids = BTreeSet::new();
        for (method, path, access) in ROUTES {
            let operation = operation(&document, method, path);
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{operation}");
            let security = operation["security"].as_array().unwrap();
            let named: Vec<&str> =
                security.iter().flat_map(|one| one.as_object().unwrap().keys()).map(String::as_str).collect();
            let responses = operation["responses"].as_object().unwrap();
            let refuses = |status: &str| responses.contains_key(status);
            match access {
                Access::Everybody => assert!(named.is_empty(), "{method} {path}"),
                Access::DeviceOrViewer => {
                    assert_eq!(named, [TOKEN, CERTIFICATE], "{method} {path}");
                    assert!(["401", "403", "429"].into_iter().all(refuses), "{method} {path}");
                }
                Access::Role(scopes) => {
                    assert_eq!(named, [TOKEN], "{method} {path}");
                    assert!(["401", "429"].into_iter().all(refuses), "{method} {path}");
                    assert_eq!(refuses("403"), !scopes.contains(&Scope::Viewer), "{method} {path}");
                }
            }
            let takes = operation.get("parameters").is_some() || operation.get("requestBody").is_some();
            assert!(refuses("400") || !takes, "{method} {path}");
            assert!(refuses("500") && refuses("507") == (*method != "GET"), "{method} {path}");
            for (status, response) in responses.iter().filter(|(status, _)| *status >= &"400".to_owned()) {
                let told = response["$ref"].as_str().map(|name| document.pointer(&name[1..]).unwrap());
                assert_eq!(
                    told.unwrap_or(response)["content"]["application/json"]["schema"]["$ref"],
                    "#/components/schemas/ErrorBody",
                    "{method} {path} {status}"
                );
            }
        }
        let check = operation(&document, "GET", "/v1/check")["responses"].as_object().unwrap();
        assert!(["400", "401", "404"].iter().all(|status| check.contains_key(*status)), "{check:?}");
    }

    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn everything_that_is_referred_to_is_there() {
        let document = serde_json::to_value(crate::api::document()).unwrap();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let missing: Vec<_> =
            found.into_iter().filter(|name| document.pointer(&name[1..]).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    /// Whether a schema tells what is in an answer.
    fn tells(document: &Value, schema: &Value) -> bool {
        if let Some(name) = schema["$ref"].as_str() {
            return tells(document, document.pointer(name.trim_start_matches('#')).unwrap());
        }
        for all in ["oneOf", "allOf"] {
            if let Some(parts) = schema[all].as_array() {
                return !parts.is_empty() && parts.iter().all(|part| tells(document, part));
            }
        }
        let is = |kind: &str| {
            schema["type"] == kind
                || schema["type"].as_array().is_some_and(|kinds| kinds.contains(&kind.into()))
        };
        if is("object") {
            let map = &schema["additionalProperties"];
            return schema["properties"].as_object().is_some_and(|all| !all.is_empty())
                || map.is_object() && tells(document, map);
        }
        if is("array") {
            // An array of bytes is a file whose form is not told.
            return schema["items"]["format"] != "int32" && tells(document, &schema["items"])
                || schema["prefixItems"].is_array();
        }
        schema["type"].is_string()
    }

    #[test]
    fn every_answer_and_every_body_tells_its_form() {
        let document = serde_json::to_value(crate::api::document()).unwrap();
        for (method, path, _) in ROUTES {
            let operation = operation(&document, method, path);
            let answers = operation["responses"].as_object().unwrap().iter();
            let mut good = answers.filter(|(status, _)| status.starts_with('2')).peekable();
            assert!(good.peek().is_some(), "{method} {path}");
            for body in good.map(|(_, answer)| answer).chain(operation.get("requestBody")) {
                let content = body["content"].as_object();
                let content = content.unwrap_or_else(|| panic!("{method} {path} has a body without a form"));
                for (kind, content) in content {
                    assert!(tells(&document, &content["schema"]), "{method} {path} {kind}: {content}");
                }
            }
        }
    }
}
