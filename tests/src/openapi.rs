//! Checks responses of the HTTP surface against the document that describes it.
//!
//! The document leaves its objects open, so that clients tolerate members that later versions add.
//! Here the objects are closed, so every member that this version sends must be in the document.

use http::HeaderMap;
use jsonschema::{Draft, Validator};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The OpenAPI document.
#[derive(Clone, Debug)]
pub struct Document(Value);

impl Document {
    /// Parses a document.
    ///
    /// # Panics
    ///
    /// If it is not JSON.
    #[must_use]
    pub fn read(json: &[u8]) -> Self {
        let mut document = serde_json::from_slice(json).expect("the document is JSON");
        close(&mut document);
        Self(document)
    }

    /// The value at a JSON pointer, with its objects closed.
    ///
    /// # Panics
    ///
    /// If there is no value.
    #[must_use]
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("the document has no {pointer}"))
    }

    fn object(&self, pointer: &str) -> &Map<String, Value> {
        self.at(pointer).as_object().unwrap_or_else(|| panic!("{pointer} is not an object"))
    }

    /// The path templates, each with its methods in capitals.
    #[must_use]
    pub fn paths(&self) -> Vec<(&str, BTreeSet<String>)> {
        let methods = |path: &Value| {
            let keys = path.as_object().into_iter().flatten().map(|(key, _)| key);
            keys.filter(|key| *key != "parameters").map(|key| key.to_uppercase()).collect()
        };
        self.object("/paths")
            .iter()
            .map(|(template, path)| (template.as_str(), methods(path)))
            .collect()
    }

    /// Checks that the document has this response for this request, with its headers and its body.
    ///
    /// # Panics
    ///
    /// If it does not. The message says why.
    #[track_caller]
    pub fn assert_describes(
        &self,
        method: &str,
        path: &str,
        status_code: u16,
        headers: &HeaderMap,
        body: &[u8],
    ) {
        let what = || {
            format!(
                "{method} {path}: {status_code} {headers:?} {:?}",
                String::from_utf8_lossy(body)
            )
        };
        let (response, names) = self
            .response(method, path, status_code)
            .unwrap_or_else(|| panic!("not in the document: {}", what()));
        for name in names {
            let header = &response["headers"][&name];
            let header = self.resolved(header);
            match headers.get(&name) {
                Some(value) => self.assert_header(
                    header,
                    value.to_str().expect("the program's own headers are ASCII"),
                    &what,
                ),
                None => assert_ne!(header["required"], true, "no {name}: {}", what()),
            }
        }
        // Responses that the server sends before it has parsed a request have neither a body nor
        // these headers.
        let by_the_routes = headers.contains_key("content-type");
        for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")]
            .into_iter()
            .filter(|_| by_the_routes)
        {
            assert_eq!(
                headers.get(name).map(http::HeaderValue::as_bytes),
                Some(value.as_bytes()),
                "{name}: {}",
                what()
            );
        }
        for name in ["allow", "idempotent-replayed", "retry-after", "surehook-event-id"] {
            let documented = response["headers"]
                .as_object()
                .is_some_and(|headers| headers.keys().any(|key| key.eq_ignore_ascii_case(name)));
            assert!(
                documented || !headers.contains_key(name),
                "{name} is not in the document: {}",
                what()
            );
        }
        let content = response["content"].as_object().filter(|_| method != "HEAD");
        let Some(content) = content else {
            assert!(body.is_empty(), "a body that is not in the document: {}", what());
            return;
        };
        let media_type = headers
            .get("content-type")
            .map_or("", |value| value.to_str().expect("a media type is ASCII"));
        let media_type = media_type.split(';').next().unwrap_or_default();
        let schema = content
            .get(media_type)
            .or_else(|| content.get("*/*"))
            .unwrap_or_else(|| panic!("{media_type:?} is not in the document: {}", what()));
        let Some(schema) = schema.get("schema") else { return };
        let answer = if media_type == "text/plain" {
            Value::from(std::str::from_utf8(body).expect("text is UTF-8"))
        } else {
            serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", what()))
        };
        if let Err(error) = self.validator(schema).validate(&answer) {
            panic!("{error}, at {:?}: {}", error.instance_path().to_string(), what());
        }
    }

    /// Checks that a value matches `#/components/schemas/{name}`.
    ///
    /// # Panics
    ///
    /// If it does not. The message says why.
    #[track_caller]
    pub fn assert_is(&self, name: &str, value: &Value) {
        if let Err(error) =
            self.validator(self.at(&format!("/components/schemas/{name}"))).validate(value)
        {
            panic!("not a {name}: {error}: {value}");
        }
    }

    fn assert_header(&self, header: &Value, value: &str, what: &dyn Fn() -> String) {
        let schema = &header["schema"];
        let value = match schema["type"].as_str() {
            Some("integer") => {
                value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from)
            }
            _ => Value::from(value),
        };
        assert!(self.validator(schema).is_valid(&value), "{value} is not {schema}: {}", what());
    }

    /// The response that the document has for a request, and the names of its headers.
    fn response(
        &self,
        method: &str,
        path: &str,
        status_code: u16,
    ) -> Option<(&Value, Vec<String>)> {
        let response = match self.template_of(path) {
            // This response is sent before the path is examined.
            _ if status_code == 501 => self.at("/components/responses/TransferCoding"),
            None if status_code == 400 => self.at("/components/responses/NotHttp"),
            None if status_code == 404 => self.at("/components/responses/UnknownRoute"),
            None => return None,
            Some(template) => {
                let path = &self.at("/paths")[template];
                let operation = match &path[method.to_lowercase()] {
                    // The errors of relayed requests are those of `POST`.
                    Value::Null if status_code != 405 => &path["post"],
                    operation => operation,
                };
                if operation.is_null() && status_code == 405 {
                    self.at("/components/responses/MethodNotAllowed")
                } else {
                    let class = format!("{}XX", status_code / 100);
                    let responses = &operation["responses"];
                    responses.get(status_code.to_string()).or_else(|| responses.get(class))?
                }
            }
        };
        let response = self.resolved(response);
        Some((
            response,
            response["headers"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        ))
    }

    fn template_of(&self, path: &str) -> Option<&str> {
        let path = path.split('?').next().unwrap_or_default();
        let path: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').collect();
        let fits = |template: &str| {
            let template: Vec<&str> = template.split('/').collect();
            template.len() == path.len()
                && template
                    .iter()
                    .zip(&path)
                    .all(|(wanted, is)| wanted == is || wanted.starts_with('{') && !is.is_empty())
        };
        self.object("/paths").keys().map(String::as_str).find(|template| fits(template))
    }

    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                self.at(reference.strip_prefix('#').expect("references stay in the document"))
            }
            None => value,
        }
    }

    /// A validator for a schema of this document. Its references are resolved in the document.
    fn validator(&self, schema: &Value) -> Validator {
        let whole = serde_json::json!({"components": self.at("/components"), "allOf": [schema]});
        let options =
            jsonschema::options().with_draft(Draft::Draft202012).should_validate_formats(true);
        options.build(&whole).unwrap_or_else(|error| panic!("not a schema: {error}: {schema}"))
    }
}

/// Forbids unknown members in each object schema that names its members.
fn close(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if members.get("type").is_some_and(|kind| kind == "object")
                && members.contains_key("required")
            {
                members.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            members.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
