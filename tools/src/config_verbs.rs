//! `check` and `dump`: the configuration as files, no daemon.

use std::time::Duration;

use replicator::admin::{ErrorId, Response, Verb, exit};
use serde_json::{Map, Value as Json};
use twinblk::config::canonical::{Table, Value};
use twinblk::config::{Config, Diagnostic, Scope, load, load_file, size_text};

use crate::cli::{self, DumpFormat};
use crate::client::ask_within;
use crate::context::{Context, Failure, Output, exit_of};

/// Tells every mistake and warning.
///
/// # Errors
/// Never; the mistakes are told and become the exit code.
pub(crate) fn check(context: &Context, arguments: &cli::Check) -> Result<u8, Failure> {
    let path = arguments.file.as_ref().unwrap_or(&context.config_dir);
    let checked = if path.is_file() {
        load_file(path)
    } else {
        load(path, Scope::All)
    };
    match checked {
        Ok(checked) => {
            context.tell_diagnostics(&checked.warnings);
            let sizes = sizes_that_differ(context, &checked.config);
            context.tell_diagnostics(&sizes);
            let (nodes, resources) = (checked.config.nodes.len(), checked.config.resources.len());
            let warnings = checked.warnings.len() + sizes.len();
            let path = path.display();
            context.tell(&format!(
                "{path}: ok, {nodes} nodes, {resources} resources, {warnings} warnings"
            ));
            Ok(exit::OK)
        }
        Err(found) => {
            context.tell_diagnostics(&found);
            Ok(exit_of(&found))
        }
    }
}

/// Volumes that were resized since their `size` was written, as far as a daemon here knows.
fn sizes_that_differ(context: &Context, config: &Config) -> Vec<Diagnostic> {
    let verb = Verb::Status { resource: None };
    let Ok(Response::Status(status)) = ask_within(context, Duration::ZERO, verb) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for resource in &status.resources {
        let Some(known) = config.resource(&resource.name) else {
            continue;
        };
        for volume in &resource.volumes {
            let of_files = known.volumes.iter().find(|it| it.id.0 == volume.volume);
            let written = of_files.and_then(|it| it.size).map(|size| size.0);
            if let (Some(written), Some(is)) = (written, volume.size_bytes)
                && written != is
            {
                let (name, nr) = (&resource.name, volume.volume);
                let larger = written > is;
                let (written, is) = (size_text(written), size_text(is));
                let message = format!("{name}/{nr} is {is}, and `size` in the files is {written}");
                let mut next = format!("size = \"{is}\" in the files of both nodes");
                if larger {
                    next += &format!("; or twinadm resize {name} --size {written}");
                }
                found.push(Diagnostic {
                    next: Some(next),
                    ..Diagnostic::nowhere(ErrorId::SizeDiffers, message)
                });
            }
        }
    }
    found
}

/// Prints the configuration in its canonical form.
///
/// # Errors
/// If it is invalid.
pub(crate) fn dump(context: &Context, arguments: &cli::Dump) -> Result<u8, Failure> {
    let config = context.load_config()?.config;
    if arguments.format == DumpFormat::Json || context.output == Output::Json {
        context.put_json(
            &tables_json(&config.tables(), arguments.show_defaults),
            false,
        )?;
    } else {
        context.put(&config.to_toml(arguments.show_defaults))?;
    }
    Ok(exit::OK)
}

/// The tables nested by their names.
fn tables_json(tables: &[Table], show_defaults: bool) -> Json {
    let mut root = Map::new();
    for table in tables {
        let entries = table
            .entries
            .iter()
            .filter(|entry| show_defaults || !entry.is_default);
        let content: Map<String, Json> = entries
            .map(|entry| (entry.key.to_owned(), value_json(&entry.value)))
            .collect();
        if content.is_empty() && table.path.len() == 1 {
            continue;
        }
        insert(&mut root, &table.path, table.repeated, content);
    }
    Json::Object(root)
}

fn insert(
    into: &mut Map<String, Json>,
    path: &[String],
    repeated: bool,
    content: Map<String, Json>,
) {
    match path {
        [] => into.extend(content),
        [last] if repeated => {
            let list = into
                .entry(last.clone())
                .or_insert_with(|| Json::Array(Vec::new()));
            if let Json::Array(list) = list {
                list.push(Json::Object(content));
            }
        }
        [first, rest @ ..] => {
            let table = into
                .entry(first.clone())
                .or_insert_with(|| Json::Object(Map::new()));
            if let Json::Object(table) = table {
                insert(table, rest, repeated, content);
            }
        }
    }
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Text(text) => Json::from(text.as_str()),
        Value::Number(number) => Json::from(*number),
        Value::Truth(truth) => Json::from(*truth),
        Value::List(items) => items.iter().map(String::as_str).collect(),
        Value::PerNode(each) => Json::Object(
            each.iter()
                .map(|(node, text)| (node.clone(), text.as_str().into()))
                .collect(),
        ),
    }
}
