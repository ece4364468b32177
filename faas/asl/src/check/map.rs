//! Map, inline and distributed.

use super::fields::Fields;
use super::{machine, state};
use crate::definition::{ItemBatcher, ItemReader, Machine, Map, MapMode, ReaderConfig, ResultWriter, Setting};
use crate::fault::{self, Fault};
use crate::template::Template;

/// The longest label.
const MAX_LABEL_CHARS: usize = 40;
/// The most items of a reader or a batch.
const MAX_ITEMS: u64 = 100_000_000;
/// The largest batch in bytes.
const MAX_BATCH_BYTES: u64 = 262_144;

/// The fields of a distributed Map only.
const DISTRIBUTED_ONLY: [&str; 8] = [
    "ItemReader",
    "ItemBatcher",
    "ResultWriter",
    "Label",
    "ToleratedFailureCount",
    "ToleratedFailureCountPath",
    "ToleratedFailurePercentage",
    "ToleratedFailurePercentagePath",
];

pub(super) fn map(fields: &mut Fields<'_, '_>) -> Option<Map> {
    fields.exclusive(&["ItemProcessor", "Iterator"]);
    let processor_field = if fields.has("Iterator") { "Iterator" } else { "ItemProcessor" };
    if !fields.has("Iterator") {
        fields.required("ItemProcessor");
    }
    let (mode, processor) = processor(fields, processor_field);
    if processor_field == "Iterator" {
        fields.get("ItemProcessor");
    }
    if !mode.is_distributed() {
        for field in DISTRIBUTED_ONLY.into_iter().filter(|field| fields.has(field)).collect::<Vec<_>>() {
            fields.fault(field, format!("The field '{field}' needs a Map whose ProcessorConfig has Mode DISTRIBUTED"));
        }
    }
    let (items_path, items, item_selector) = if fields.is_jsonata() {
        (None, items(fields), fields.payload("ItemSelector"))
    } else {
        fields.exclusive(&["ItemSelector", "Parameters"]);
        let selector = fields.payload("ItemSelector");
        (fields.reference("ItemsPath"), None, selector.or(fields.payload("Parameters")))
    };
    let max_concurrency = fields.whole_setting("MaxConcurrency", 0, u64::MAX);
    let tolerated_failure_count = fields.whole_setting("ToleratedFailureCount", 0, MAX_ITEMS);
    let tolerated_failure_percentage = fields.fraction_setting("ToleratedFailurePercentage", 0.0, 100.0);
    let item_reader = reader(fields);
    let item_batcher = batcher(fields);
    let result_writer = writer(fields);
    let label = label(fields);
    Some(Map {
        processor: processor?,
        processor_field,
        mode,
        items_path,
        items,
        item_selector,
        max_concurrency,
        tolerated_failure_count,
        tolerated_failure_percentage,
        item_reader,
        item_batcher,
        result_writer,
        label,
    })
}

/// JSONata's `Items`: an array, an object (distributed) or an expression.
fn items(fields: &mut Fields<'_, '_>) -> Option<Template> {
    let value = fields.get("Items")?;
    let expression = value.as_str().is_some_and(|text| text.starts_with("{%"));
    if !value.is_array() && !value.is_object() && !expression {
        fields.fault("Items", "The value for the field 'Items' must be an ARRAY, an OBJECT or an expression");
        return None;
    }
    fields.template("Items")
}

fn processor(fields: &mut Fields<'_, '_>, field: &str) -> (MapMode, Option<Machine>) {
    let Some(mut inner) = fields.object(field).map(|inner| {
        let language = inner.check.language;
        inner.with_language(language)
    }) else {
        return (MapMode::Inline, None);
    };
    let mode = match inner.object("ProcessorConfig") {
        None => MapMode::Inline,
        Some(mut config) => {
            let mode = config.word("Mode", &["INLINE", "DISTRIBUTED"]);
            let execution = config.word("ExecutionType", &["STANDARD", "EXPRESS"]);
            let distributed = mode.as_deref() == Some("DISTRIBUTED");
            if distributed && !config.has("ExecutionType") {
                config.own_fault("The required field 'ExecutionType' is missing where Mode is DISTRIBUTED");
            }
            if !distributed && execution.is_some() {
                config.fault("ExecutionType", "The field 'ExecutionType' needs Mode DISTRIBUTED");
            }
            config.finish("of a ProcessorConfig");
            match (distributed, execution.as_deref()) {
                (true, Some("EXPRESS")) => MapMode::DistributedExpress,
                (true, _) => MapMode::DistributedStandard,
                (false, _) => MapMode::Inline,
            }
        }
    };
    (mode, machine(inner, "of the processor of a Map state"))
}

/// The parameters of a reader or writer, by the language's name for them.
fn parameters(fields: &mut Fields<'_, '_>) -> Option<Template> {
    if fields.is_jsonata() { fields.payload("Arguments") } else { fields.payload("Parameters") }
}

fn reader(fields: &mut Fields<'_, '_>) -> Option<ItemReader> {
    let mut inner = fields.object("ItemReader")?;
    let resource = inner.required_string("Resource");
    let parameters = parameters(&mut inner);
    let config = reader_config(&mut inner).unwrap_or_default();
    state::wrong_language(&mut inner);
    inner.finish("of an ItemReader");
    Some(ItemReader { resource: resource?, parameters, config })
}

fn reader_config(fields: &mut Fields<'_, '_>) -> Option<ReaderConfig> {
    let raw = fields.get("ReaderConfig").cloned()?;
    let mut inner = fields.object("ReaderConfig")?;
    let input_type = inner.word("InputType", &["CSV", "JSON", "JSONL", "MANIFEST", "PARQUET"]);
    inner.word("ManifestType", &["ATHENA_DATA", "S3_INVENTORY"]);
    let transformation = inner.word("Transformation", &["NONE", "LOAD_AND_FLATTEN"]);
    let location = inner.word("CSVHeaderLocation", &["FIRST_ROW", "GIVEN"]);
    let delimiter = inner.word("CSVDelimiter", &["COMMA", "PIPE", "SEMICOLON", "SPACE", "TAB"]);
    let headers: Vec<String> = match inner.array("CSVHeaders") {
        Some(items) => {
            if items.iter().any(|item| !item.is_string()) {
                inner.fault("CSVHeaders", "The names in 'CSVHeaders' must be STRINGs");
            }
            items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        None => Vec::new(),
    };
    if location.as_deref() == Some("GIVEN") && headers.is_empty() {
        inner.own_fault("The required field 'CSVHeaders' is missing where CSVHeaderLocation is GIVEN");
    }
    if location.as_deref() != Some("GIVEN") && !headers.is_empty() {
        inner.fault("CSVHeaders", "The field 'CSVHeaders' needs CSVHeaderLocation GIVEN");
    }
    let csv = input_type.as_deref() == Some("CSV") || inner.has("ManifestType") || transformation.is_some();
    if input_type.as_deref() == Some("CSV") && !inner.has("CSVHeaderLocation") {
        inner.own_fault("The required field 'CSVHeaderLocation' is missing where InputType is CSV");
    }
    for field in ["CSVHeaderLocation", "CSVDelimiter"] {
        if !csv && inner.has(field) {
            inner.fault(field, format!("The field '{field}' needs InputType CSV"));
        }
    }
    let max_items: Option<Setting<u64>> = inner.whole_setting("MaxItems", 0, MAX_ITEMS);
    let items_pointer = inner.string("ItemsPointer");
    if items_pointer.as_deref().is_some_and(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
        inner.fault("ItemsPointer", "The value for the field 'ItemsPointer' must be a JSON pointer such as /a/items");
    }
    inner.finish("of a ReaderConfig");
    Some(ReaderConfig {
        input_type,
        csv_header_location: location,
        csv_headers: headers,
        csv_delimiter: delimiter,
        max_items,
        items_pointer,
        transformation,
        raw,
    })
}

fn batcher(fields: &mut Fields<'_, '_>) -> Option<ItemBatcher> {
    let mut inner = fields.object("ItemBatcher")?;
    let batch_input = inner.payload("BatchInput");
    let max_items_per_batch = inner.whole_setting("MaxItemsPerBatch", 1, MAX_ITEMS);
    let max_input_bytes_per_batch = inner.whole_setting("MaxInputBytesPerBatch", 1, MAX_BATCH_BYTES);
    let limits = ["MaxItemsPerBatch", "MaxItemsPerBatchPath", "MaxInputBytesPerBatch", "MaxInputBytesPerBatchPath"];
    if !limits.iter().any(|field| inner.has(field)) {
        inner.own_fault("An ItemBatcher has 'MaxItemsPerBatch' or 'MaxInputBytesPerBatch'");
    }
    inner.finish("of an ItemBatcher");
    Some(ItemBatcher { batch_input, max_items_per_batch, max_input_bytes_per_batch })
}

fn writer(fields: &mut Fields<'_, '_>) -> Option<ResultWriter> {
    let mut inner = fields.object("ResultWriter")?;
    let resource = inner.string("Resource");
    let parameters = parameters(&mut inner);
    let (mut transformation, mut output_type) = (None, None);
    let configured = inner.has("WriterConfig");
    if let Some(mut config) = inner.object("WriterConfig") {
        transformation = config.word("Transformation", &["NONE", "COMPACT", "FLATTEN"]);
        output_type = config.word("OutputType", &["JSON", "JSONL"]);
        config.finish("of a WriterConfig");
    }
    if resource.is_none() && !configured {
        inner.own_fault("A ResultWriter has a 'Resource' or a 'WriterConfig'");
    }
    state::wrong_language(&mut inner);
    inner.finish("of a ResultWriter");
    Some(ResultWriter { resource, parameters, transformation, output_type })
}

fn label(fields: &mut Fields<'_, '_>) -> Option<String> {
    let label = fields.string("Label")?;
    let bad = |c: char| c.is_whitespace() || c.is_control() || "?*<>{}[]:;,\\|^~$#%&`\"".contains(c);
    let at = fields.pointer("Label");
    if label.is_empty() || label.chars().count() > MAX_LABEL_CHARS || label.contains(bad) {
        let message = format!(
            "The label '{label}' must have 1 to {MAX_LABEL_CHARS} characters without spaces, wildcards, brackets and \
             special characters"
        );
        fields.check.faults.push(Fault::error(fault::INVALID_LABEL_NAME, at, message));
    } else if !fields.check.labels.insert(label.clone()) {
        let message = format!("The label '{label}' occurs more than once");
        fields.check.faults.push(Fault::error(fault::DUPLICATE_LABEL_NAME, at, message));
    }
    Some(label)
}
