//! Sections whose names and keys are known, each value where it counts.
//!
//! Between lines and meaning: names are looked up, keys that stand twice found, `$NAME` replaced by the variable's value,
//! overrides put in place of what the file says. Only known keys come through, so what follows asks for them by name.

use super::environment::{Environment, Override};
use super::ini::{Entry, Section, Value};
use super::remark::{Place, Remarks, quoted};
use super::schema::{Form, Key, Kind, SectionSchema, suggest_key, suggest_section};
use super::values::Problem;
use std::path::Path;

/// Keys of which a section has one.
const ALTERNATIVES: [[&str; 2]; 2] = [["PrivateKey", "PrivateKeyFile"], ["PresharedKey", "PresharedKeyFile"]];

/// A section with its values.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) schema: &'static SectionSchema,
    pub(super) place: Place,
    values: Vec<Field<'a>>,
}

/// A key and one of its values.
#[derive(Debug)]
struct Field<'a> {
    key: &'static Key,
    /// Where the key stands.
    place: Place,
    value: Value<'a>,
}

impl<'a> Fields<'a> {
    fn new(schema: &'static SectionSchema, place: Place) -> Self {
        Self { schema, place, values: Vec::new() }
    }

    fn add(&mut self, entry: Entry<'a>, environment: &'a Environment, remarks: &mut Remarks) {
        let Some(key) = self.schema.key(entry.key) else {
            let why = if self.schema.kind == Kind::Top {
                "it stands before the first section".to_owned()
            } else {
                format!("{} has no such key", self.schema.title())
            };
            remarks.error(&entry.place, quoted(entry.key, "", ""), why, suggest_key(entry.key, self.schema));
            return;
        };
        let first = self.values.iter().find(|field| field.key == key);
        match (key.form, first) {
            (Form::Ignored, None) => remarks.warning(
                &entry.place,
                key.name,
                "it has no effect: there is no interface of the system here, and nothing is run",
                "remove it, or leave it for wg-quick",
            ),
            (Form::Single | Form::Secret, Some(first)) => {
                let why = format!("it stands there twice, first at {}", first.place);
                remarks.error(&entry.place, key.name, why, "remove one of the two");
                return;
            }
            _ => {}
        }
        if entry.value.cut && matches!(key.name, "Username" | "Password") {
            remarks.warning(
                &entry.value.place,
                key.name,
                "it ends before a #, which begins a comment",
                "put the value between double quotes if the # belongs to it",
            );
        }
        // What is not read refers to nothing: commands of wg-quick may well begin with a variable of their own.
        let value = if key.form == Form::Ignored { Ok(entry.value) } else { resolved(entry.value, key, environment) };
        match value {
            Ok(value) => self.values.push(Field { key, place: entry.place, value }),
            Err((place, why)) => {
                remarks.error(&place, key.name, why, "set it, or write $$ if the value begins with a dollar sign");
            }
        }
    }

    /// The value of a variable takes the place of all that the file says for the key, or for the key's file.
    fn replace(&mut self, over: &Override<'a>) {
        let says_the_same = |field: &Field<'_>| {
            let either = |pair: &[&str; 2]| pair.contains(&field.key.name) && pair.contains(&over.key.name);
            field.key == over.key || (matches!(field.place, Place::File { .. }) && ALTERNATIVES.iter().any(either))
        };
        self.values.retain(|field| !says_the_same(field));
        let place = over.place.clone();
        let value = Value { text: over.value, place, folder: Path::new(""), quoted: true, cut: false };
        self.values.push(Field { key: over.key, place: over.place.clone(), value });
    }

    /// Puts the values of another section of this kind to these.
    fn merge(&mut self, other: Self, remarks: &mut Remarks) {
        for field in other.values {
            let once = matches!(field.key.form, Form::Single | Form::Secret);
            match self.values.iter().find(|first| once && first.key == field.key) {
                Some(first) => {
                    let why = format!("it stands in both files, also at {}", first.place);
                    remarks.error(&field.place, field.key.name, why, "remove one of the two");
                }
                None => self.values.push(field),
            }
        }
    }

    /// Whether the key is there, with whatever value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.of(name).next().is_some()
    }

    fn of(&self, name: &str) -> impl Iterator<Item = &Field<'a>> {
        debug_assert!(self.schema.key(name).is_some_and(|key| key.name == name), "{name} is in the table");
        self.values.iter().filter(move |field| field.key.name == name)
    }

    /// The value of a key, as it stands there.
    pub(super) fn text(&self, name: &str) -> Option<&Value<'a>> {
        self.of(name).next().map(|field| &field.value)
    }

    /// The value of a key; nothing if it is not there, or wrong, which is told.
    pub(super) fn optional<T>(
        &self,
        name: &'static str,
        remarks: &mut Remarks,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.text(name)?;
        if value.text.is_empty() {
            remarks.error(&value.place, name, "it has no value", "write one behind the =, or remove the line");
            return None;
        }
        let parsed = parse(value.text);
        parsed.map_err(|problem| remarks.error(&value.at(problem.offset), name, problem.why, problem.next)).ok()
    }

    /// As [`optional`](Self::optional), but it is wrong that the key is not there. `example` is a line to write then.
    pub(super) fn required<T>(
        &self,
        name: &'static str,
        example: &str,
        remarks: &mut Remarks,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        if !self.has(name) {
            remarks.error(&self.place, self.schema.title(), format!("it has no {name}"), format!("add {example}"));
        }
        self.optional(name, remarks, parse)
    }

    /// The values between commas, on all lines of the key, with their places. Those that are wrong are told.
    pub(super) fn list<T>(
        &self,
        name: &'static str,
        remarks: &mut Remarks,
        parse: impl Fn(&str) -> Result<T, Problem>,
    ) -> Vec<(Place, T)> {
        let mut parsed = Vec::new();
        for Field { value, .. } in self.of(name) {
            let mut start = 0;
            for part in value.text.split(',') {
                let offset = start + part.len() - part.trim_start().len();
                start += part.len() + 1;
                let part = part.trim();
                if part.is_empty() {
                    // An empty value is an empty list.
                    if !value.text.trim().is_empty() {
                        let next = "remove one of the commas";
                        remarks.error(&value.at(offset), name, "nothing stands between two commas", next);
                    }
                    continue;
                }
                match parse(part) {
                    Ok(item) => parsed.push((value.at(offset), item)),
                    Err(Problem { offset: inside, why, next }) => {
                        remarks.error(&value.at(offset + inside), name, why, next);
                    }
                }
            }
        }
        parsed
    }
}

/// `$NAME` is the value of that variable, `$$…` begins with one dollar sign. What a secret refers to is not named: it may
/// be the secret.
fn resolved<'a>(value: Value<'a>, key: &Key, environment: &'a Environment) -> Result<Value<'a>, (Place, String)> {
    let Some(name) = value.text.strip_prefix('$').filter(|_| !value.quoted) else { return Ok(value) };
    if name.starts_with('$') {
        return Ok(Value { text: name, ..value });
    }
    match environment.get(name) {
        Some(text) => Ok(Value { text: text.trim(), ..value }),
        None if key.form == Form::Secret => {
            Err((value.place, "the variable of the environment that it refers to is not set".to_owned()))
        }
        None => {
            let name = quoted(name, "$", "");
            Err((value.place, format!("it refers to a variable of the environment that is not set: {name}")))
        }
    }
}

/// The sections of one file, unknown names told. Of a kind that does not repeat there is one.
pub(super) fn of_file<'a>(
    sections: Vec<Section<'a>>,
    environment: &'a Environment,
    remarks: &mut Remarks,
) -> Vec<Fields<'a>> {
    let mut all: Vec<Fields<'a>> = Vec::new();
    for section in sections {
        let schema = match section.name {
            "" if all.is_empty() => SectionSchema::of(Kind::Top),
            name => match SectionSchema::find(name) {
                Some(schema) => schema,
                None => {
                    // A header that could not be read was told already.
                    if name != "[" {
                        let next = suggest_section(name);
                        remarks.error(&section.place, quoted(name, "[", "]"), "there is no such section", next);
                    }
                    continue;
                }
            },
        };
        if let Some(first) = all.iter().find(|first| first.schema.kind == schema.kind && !schema.repeats) {
            let why = format!("there can be one only, and the first is at {}", first.place);
            remarks.error(&section.place, schema.title(), why, "put all of its lines into one");
            continue;
        }
        let mut fields = Fields::new(schema, section.place);
        for entry in section.entries {
            fields.add(entry, environment, remarks);
        }
        all.push(fields);
    }
    all
}

/// Puts the sections of a `WGConfig` file to those of the file that names it.
pub(super) fn include<'a>(all: &mut Vec<Fields<'a>>, included: Vec<Fields<'a>>, remarks: &mut Remarks) {
    for fields in included {
        match fields.schema.kind {
            Kind::Interface => match all.iter_mut().find(|it| it.schema.kind == Kind::Interface) {
                Some(own) => own.merge(fields, remarks),
                None => all.push(fields),
            },
            Kind::Peer => all.push(fields),
            Kind::Top => {
                if let Some(field) = fields.values.first() {
                    remarks.error(&field.place, field.key.name, "this file is one itself", "remove this line");
                }
            }
            _ => remarks.warning(
                &fields.place,
                fields.schema.title(),
                "of a WGConfig file only [Interface] and [Peer] count",
                "move it to the file that names this one",
            ),
        }
    }
}

/// Lets variables say the values of keys; sections that are not there yet are made.
pub(super) fn overridden<'a>(all: &mut Vec<Fields<'a>>, overrides: &[Override<'a>], remarks: &mut Remarks) {
    for (index, over) in overrides.iter().enumerate() {
        let is_same =
            |other: &&Override<'_>| (other.kind, other.number, other.key) == (over.kind, over.number, over.key);
        if let Some(other) = overrides[..index].iter().find(is_same) {
            let why = format!("{} is the same key", other.place);
            remarks.error(&over.place, "This variable", why, "unset one of the two");
            continue;
        }
        let schema = SectionSchema::of(over.kind);
        let count = all.iter().filter(|fields| fields.schema.kind == over.kind).count();
        if over.number > count + 1 {
            let why = format!("there is no {} of this number: there are {count}", schema.title());
            remarks.error(&over.place, "This variable", why, "count from 1, without a gap");
            continue;
        }
        if over.number == count + 1 {
            all.push(Fields::new(schema, over.place.clone()));
        }
        let found = all.iter_mut().filter(|fields| fields.schema.kind == over.kind).nth(over.number - 1);
        if let Some(fields) = found {
            fields.replace(over);
        }
    }
}
