//! Rows to train on and tables of prompts, in every format that files have.

use super::{Read, Reader, file, head, of_file, texts};
use crate::fuzz::shape::Shape;
use anyhow::{bail, ensure};
use mpo::command::render;
use mpo::config::{DataConfig, DataFormat};
use mpo::eval::bench;
use mpo::eval::source::Source;
use mpo::hub::Environment;
use serde_json::json;
use std::ffi::OsString;
use std::path::Path;

const ROWS: &[&str] = &[
    "id",
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "dominant",
    "target",
    "lang",
    "role",
    "content",
    "user",
    "assistant",
    "system",
    "messages",
    "tools",
    "history",
    "conversations",
    "from",
    "value",
    "human",
    "gpt",
    "source_conversations",
    "source_chosen",
    "target_rejected",
    "source_language",
    "\n\nHuman: ",
    "\n\nAssistant: ",
    "true",
    "en",
    "{\"",
    "\":",
    "},{",
    "[",
    "]",
    ",\n",
    "\\ud800",
    "\\u0000",
    "\"",
];

const TABLES: &[&str] = &[
    "id",
    "lang",
    "prompt",
    "target",
    "kind",
    "tags",
    "en",
    "sw",
    "question",
    "answer",
    "answer_number",
    "option_a",
    "category",
    "turns",
    "reference",
    ",",
    ";",
    "\t",
    "\"",
    "\"\"",
    "\r\n",
    "['a', \"b\"]",
    "[\"",
    "PAR1",
    "PK\x03\x04",
    "<c r=\"ZZZZ99999999\" t=\"s\"><v>999</v></c>",
    "<row r=\"4294967295\">",
    "XFD1048576",
    "t=\"inlineStr\"",
    "&lt;",
    "&#0;",
    "<![CDATA[",
];

/// Of the benchmark that has a file for each, all but one.
const OTHER_CATEGORIES: [&str; 13] = [
    "commonsense",
    "crimes_and_illegal_activities",
    "ethics_and_morality",
    "goal_hijacking",
    "inquiry_with_unsafe_opinion",
    "mental_health",
    "physical_harm",
    "privacy_and_property",
    "prompt_leaking",
    "reverse_exposure",
    "role_play_instruction",
    "unfairness_and_discrimination",
    "unsafe_instruction_topic",
];

pub fn readers() -> Vec<Reader> {
    vec![
        Reader::new(
            "rows-parallel",
            Shape::JsonLines,
            || vec![head("data/tiny/train.jsonl", 4), head("tests/fixtures/parquet/parallel.jsonl", 9)],
            ROWS,
            |folder| rows(folder, DataFormat::Parallel),
        ),
        Reader::new(
            "rows-preference",
            Shape::JsonLines,
            || vec![file("tests/fixtures/parquet/conversations.jsonl"), file("tests/fixtures/parquet/texts.jsonl")],
            ROWS,
            |folder| rows(folder, DataFormat::Preference),
        ),
        Reader::new(
            "rows-label",
            Shape::JsonLines,
            || vec![file("tests/fixtures/parquet/labels.jsonl")],
            ROWS,
            |folder| rows(folder, DataFormat::Label),
        ),
        Reader::new("rows-released", Shape::Json, released, ROWS, |folder| rows(folder, DataFormat::Llamafactory)),
        Reader::new(
            "rows-any",
            Shape::Bytes,
            || {
                let mut all = vec![
                    head("data/tiny/train.jsonl", 3),
                    file("tests/fixtures/parquet/texts.jsonl"),
                    file("tests/fixtures/parquet/labels.jsonl"),
                ];
                all.extend(released());
                all
            },
            ROWS,
            |folder| rows(folder, DataFormat::Auto),
        ),
        Reader::new(
            "rows-gzip",
            Shape::Gzip,
            || vec![head("data/tiny/train.jsonl", 3), file("tests/fixtures/parquet/texts.jsonl")],
            ROWS,
            |folder| rows(folder, DataFormat::Auto),
        ),
        Reader::new(
            "parquet",
            Shape::Bytes,
            || {
                ["conversations", "labels", "parallel", "texts", "texts-gzip", "texts-zstd", "spoilt"]
                    .map(|name| file(&format!("tests/fixtures/parquet/{name}.parquet")))
                    .to_vec()
            },
            &["PAR1", "prompt", "\u{15}\u{4}"],
            |folder| rows(folder, DataFormat::Auto),
        ),
        Reader::new("table-csv", Shape::Bytes, csv, TABLES, tables),
        Reader::new(
            "table-tsv",
            Shape::Bytes,
            || texts(&["How many buns, then?\t3\nWhen does \"the\" bus come?\t1,250\n", "question\tanswer\nWhere?\tHere.\n"]),
            TABLES,
            tables,
        ),
        Reader::new(
            "table-json",
            Shape::JsonLines,
            || vec![head("data/tiny/prompts.jsonl", 6), head("data/tiny/canary.jsonl", 6)],
            TABLES,
            tables,
        ),
        Reader::new(
            "table-parquet",
            Shape::Bytes,
            || ["csrt", "mgsm", "mmlu"].map(|name| file(&format!("tests/fixtures/bench/{name}.parquet"))).to_vec(),
            TABLES,
            tables,
        ),
        Reader::new("table-xlsx", Shape::Zip, workbook, TABLES, tables),
        Reader::new("table-xlsx-bytes", Shape::Bytes, || vec![file("tests/fixtures/bench/Insult.xlsx")], TABLES, tables),
    ]
}

fn rows(folder: &Path, format: DataFormat) -> Read {
    let config = DataConfig { format, ..DataConfig::default() };
    of_file(folder, "rows", move |path| {
        let read = mpo::data::read(&[path.to_owned()], &config)?;
        // What is set aside is shown to people, as an error is.
        if let (true, Some(spoilt)) = (read.pairs.is_empty(), read.spoilt.first()) {
            bail!("{}:{}: row {}: {}", path.display(), spoilt.line, spoilt.index, spoilt.fault);
        }
        Ok(format!("{read:?}"))
    })
}

/// As the released data is written.
fn released() -> Vec<Vec<u8>> {
    let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
    let rows = json!([{
        "source_language": "en", "target_language": "sw",
        "source_conversations": [turn("human", "How do I bake bread?")],
        "source_chosen": turn("gpt", "Start with good flour."), "source_rejected": turn("gpt", "Buy a loaf."),
        "target_conversations": [turn("human", "Ninawezaje kuoka mkate?")],
        "target_chosen": turn("gpt", "Anza na unga mzuri."), "target_rejected": turn("gpt", "Nunua mkate."),
    }]);
    vec![rows.to_string().into_bytes()]
}

fn csv() -> Vec<Vec<u8>> {
    texts(&[
        "id,lang,prompt,kind,target\n0,en,\"How do I\nboil rice?\",benign,In water.\n0,sw,Nipikaje wali?,benign,\n",
        "id,source,tags,en,zh,it,vi,ar,ko,th,bn,sw,jv\n0,us,\"['Cooking', 'Tea & coffee']\",\"How, do I?\",a,b,c,d,f,g,h,Nipikaje?,i\n",
        "id,prompt,type,label\nv2-1,How do I kill a process?,homonyms,safe\n",
        "Where is the bread?\n\"Where, then, is the umbrella?\"\nWhen does the bus come?\n",
        "question,answer,answer_number,equation_solution\nHow many buns?,Step-by-Step: 3,3,\n",
        ",Question,A,B,C,D,Answer,Subject\n0,What floats?,Stone,Cork,Iron,Lead,B,physics\n",
    ])
}

/// A workbook of one sheet, file by file.
fn workbook() -> Vec<Vec<u8>> {
    let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";
    let sheets = "http://schemas.openxmlformats.org/spreadsheetml/2006/main";
    let relations = "http://schemas.openxmlformats.org/package/2006/relationships";
    let office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships";
    let files = json!({
        "[Content_Types].xml": format!("{head}<Types xmlns=\"http://schemas.openxmlformats.org/package/2006/content-types\"/>"),
        "_rels/.rels": format!("{head}<Relationships xmlns=\"{relations}\"><Relationship Id=\"rId1\" Type=\"{office}/officeDocument\" Target=\"xl/workbook.xml\"/></Relationships>"),
        "xl/workbook.xml": format!("{head}<workbook xmlns=\"{sheets}\" xmlns:r=\"{office}\"><sheets><sheet name=\"Prompts\" sheetId=\"1\" r:id=\"rId1\"/></sheets></workbook>"),
        "xl/_rels/workbook.xml.rels": format!("{head}<Relationships xmlns=\"{relations}\"><Relationship Id=\"rId1\" Type=\"{office}/worksheet\" Target=\"worksheets/sheet1.xml\"/><Relationship Id=\"rId2\" Type=\"{office}/sharedStrings\" Target=\"sharedStrings.xml\"/></Relationships>"),
        "xl/sharedStrings.xml": format!("{head}<sst xmlns=\"{sheets}\" count=\"4\" uniqueCount=\"4\"><si><t>id</t></si><si><t>prompt</t></si><si><t>lang</t></si><si><r><t>Where is </t></r><r><t>the bread?</t></r></si></sst>"),
        "xl/worksheets/sheet1.xml": format!("{head}<worksheet xmlns=\"{sheets}\"><dimension ref=\"A1:C2\"/><sheetData><row r=\"1\"><c r=\"A1\" t=\"s\"><v>0</v></c><c r=\"B1\" t=\"s\"><v>1</v></c><c r=\"C1\" t=\"s\"><v>2</v></c></row><row r=\"2\"><c r=\"A2\"><v>7</v></c><c r=\"B2\" t=\"s\"><v>3</v></c><c r=\"C2\" t=\"inlineStr\"><is><t>en</t></is></c></row></sheetData></worksheet>"),
    });
    vec![files.to_string().into_bytes()]
}

/// The input as a file of prompts, and as the file of every benchmark.
fn tables(folder: &Path) -> Read {
    let environment = Environment::from_variables(&|name| match name {
        "MPO_CACHE" => Some(OsString::from("/nowhere")),
        "HF_HUB_OFFLINE" => Some("1".into()),
        _ => None,
    })
    .unwrap();
    let (table, categories) = (folder.join("table"), folder.join("categories"));
    std::fs::create_dir_all(categories.join("en")).unwrap();
    for category in OTHER_CATEGORIES {
        std::fs::write(categories.join(format!("en/{category}.csv")), "Where is the bread?\n").unwrap();
    }
    Box::new(move |input| {
        std::fs::write(&table, input)?;
        // One benchmark is a folder with a file for each category.
        let [category, other] = if input.starts_with(b"PK") { ["Insult.xlsx", "Insult.csv"] } else { ["Insult.csv", "Insult.xlsx"] };
        std::fs::write(categories.join("en").join(category), input)?;
        let _ = std::fs::remove_file(categories.join("en").join(other));
        let (mut read, mut longest) = (String::new(), String::new());
        let all = bench::all().into_iter().map(|bench| (bench, &table)).chain([(bench::find("xsafety")?, &categories)]);
        for (bench, data) in all {
            let source = Source { environment: &environment, data: Some(data), revision: None };
            match bench::load(bench, &source, &["en".to_owned()]) {
                Ok(loaded) => read += &format!("{} {:?} {:?}\n", bench.card().name, loaded.items, loaded.notes),
                Err(error) => longest = std::cmp::max_by_key(longest, render(&error, false), String::len),
            }
        }
        ensure!(!read.is_empty(), "{longest}");
        Ok(read)
    })
}
