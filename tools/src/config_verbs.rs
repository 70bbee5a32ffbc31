//! `check` and `dump`: the configuration as files, no daemon.

use replicator::admin::exit;
use serde_json::{Map, Value as Json};
use twinblk::config::canonical::{Table, Value};
use twinblk::config::{Scope, load, load_file};

use crate::cli::{self, DumpFormat};
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
            let (nodes, resources) = (checked.config.nodes.len(), checked.config.resources.len());
            let warnings = checked.warnings.len();
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
