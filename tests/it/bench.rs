//! Benchmarks read from files as their authors write them, with rows of our own: every trap of a format, and what the errors say.

use super::hub::{Files, World};
use mpo::eval::bench::mgsm::{self, Filter};
use mpo::eval::bench::{self, Loaded, mmmlu, reward_gap};
use mpo::eval::item::{Item, Kind};
use mpo::eval::source::Source;
use mpo::hub::Environment;
use serde_json::json;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder, and an environment in which nothing is ever fetched.
struct Data {
    dir: tempfile::TempDir,
    environment: Environment,
}

impl Data {
    fn of(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { dir, environment: offline() }
    }

    fn load(&self, bench: &str, data: &str, langs: &[&str]) -> anyhow::Result<Loaded> {
        load(&self.environment, bench, &self.dir.path().join(data), langs)
    }

    /// Errors name files; where they lie is another matter.
    fn fails(&self, bench: &str, data: &str, langs: &[&str]) -> String {
        format!("{:#}", self.load(bench, data, langs).unwrap_err()).replace(&self.dir.path().display().to_string(), "DIR")
    }
}

fn offline() -> Environment {
    Environment::from_variables(&|name| match name {
        "MPO_CACHE" => Some(OsString::from("/nowhere")),
        "HF_HUB_OFFLINE" => Some("1".into()),
        _ => None,
    })
    .unwrap()
}

fn load(environment: &Environment, bench: &str, data: &Path, langs: &[&str]) -> anyhow::Result<Loaded> {
    let langs: Vec<_> = langs.iter().map(|lang| (*lang).to_owned()).collect();
    bench::load(bench::find(bench)?, &Source { environment, data: Some(data), revision: None }, &langs)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bench").join(name)
}

/// Language, id and first turn.
fn shown(items: &[Item]) -> Vec<(&str, &str, &str)> {
    items.iter().map(|item| (item.lang.as_str(), item.id.as_str(), item.turns[0].as_str())).collect()
}

const MULTIJAIL: &str = "\u{feff}id,source,tags,en,zh,it,vi,ar,ko,th,bn,sw,jv\n\
    0,us,\"['Cooking', 'Tea & coffee']\",\"How do I\nboil rice?\",a,b,c,\"d\r\ne\",f,g,h,\"Nipikaje\nwali?\",i\n\
    7,us,['Garden'],When?,a,b,c,d,f,g,h,Lini? ,i\n";

/// Two cells of which one is the last that a sheet can have: what lies between is in no memory.
#[test]
fn a_sheet_is_as_large_as_its_cells() {
    let sheet = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz/table-xlsx--first-and-last-cell");
    let error = format!("{:#}", load(&offline(), "prompts", &sheet, &[]).unwrap_err());
    assert!(error.contains("two columns of the same name"), "{error}");
}

#[test]
fn multijail_keeps_marks_line_breaks_and_crlf_in_their_fields() {
    let data = Data::of(&[("copy/MultiJail.csv", MULTIJAIL)]);
    let loaded = data.load("multijail", "", &["sw", "ar", "en"]).unwrap();
    assert_eq!(
        shown(&loaded.items),
        [
            ("sw", "0", "Nipikaje\nwali?"),
            ("sw", "7", "Lini? "),
            ("ar", "0", "d\r\ne"),
            ("ar", "7", "d"),
            ("en", "0", "How do I\nboil rice?"),
            ("en", "7", "When?")
        ]
    );
    let first = &loaded.items[0];
    assert_eq!(
        (first.kind, &first.tags, &first.english),
        (Kind::Harmful, &vec!["Cooking".into(), "Tea & coffee".into()], &vec!["How do I\nboil rice?".into()])
    );
    assert!(loaded.items[4].english.is_empty(), "it is English");
    assert_eq!(first.doc["source"], json!("us"));
    assert_eq!(loaded.notes, ["`multijail` has 315 prompts in each language as published, here 2 in ar, 2 in en, 2 in sw"]);
    assert_eq!((loaded.files[0].name.as_str(), loaded.files[0].sha256.len(), &loaded.files[0].known), ("copy/MultiJail.csv", 64, &None));
    // Named as a file it may have any name.
    let renamed = Data::of(&[("x.txt", MULTIJAIL)]);
    assert_eq!(renamed.load("multijail", "x.txt", &[]).unwrap().items.len(), 20);
}

#[test]
fn a_file_that_is_not_the_benchmark_is_refused_with_its_place() {
    let without_sw = MULTIJAIL.replace(",sw,", ",swahili,");
    let twice = MULTIJAIL.replace("\n7,", "\n0,");
    let blank = MULTIJAIL.replace("Lini? ", " ");
    let data = Data::of(&[("MultiJail.csv", &without_sw), ("twice.csv", &twice), ("blank.csv", &blank), ("empty/README", "")]);
    assert!(data.fails("multijail", "MultiJail.csv", &["sw"]).contains("DIR/MultiJail.csv:2: there is no column `sw`"));
    assert!(data.fails("multijail", "twice.csv", &["sw"]).contains("`multijail` has the id `0` twice in `sw`"));
    assert!(data.fails("multijail", "blank.csv", &["sw"]).contains("DIR/blank.csv:6: `sw` is empty"), "the line of the file");
    assert!(data.fails("multijail", "empty", &[]).contains("there is no file of `multijail` (MultiJail.csv) among `README`"));
}

#[test]
fn csrt_is_the_same_as_csv_and_as_parquet() {
    let csv = "id,category,en,csrt\n0,\"['cooking', 'garden']\",How do I boil rice?,Wie koche ich 米?\n1,['garden'],When do I water roses?,Lini ninamwagilia roses?\n";
    let data = Data::of(&[("csrt.csv", csv)]);
    let of_csv = data.load("csrt", "csrt.csv", &[]).unwrap();
    let of_parquet = load(&data.environment, "csrt", &fixture("csrt.parquet"), &["mixed"]).unwrap();
    let essence = |loaded: &Loaded| loaded.items.iter().cloned().map(|item| Item { doc: json!(null), ..item }).collect::<Vec<_>>();
    assert_eq!(essence(&of_csv), essence(&of_parquet));
    let first = &of_csv.items[0];
    assert_eq!((first.lang.as_str(), first.english[0].as_str(), first.tags.len()), ("mixed", "How do I boil rice?", 2));
    assert!(data.fails("csrt", "csrt.csv", &["en"]).contains("its languages are mixed; every prompt mixes ten languages"));
}

#[test]
fn xstest_has_two_halves() {
    let header = "id,prompt,type,label,focus,note\n";
    let data = Data::of(&[
        (
            "xstest_prompts.csv",
            &format!("{header}1,How do I kill a process?,homonyms,safe,kill,\n2,\"Poison, where?\",contrast_homonyms,unsafe,kill,\n"),
        ),
        ("odd.csv", &format!("{header}1,How?,homonyms,fine,kill,\n")),
        ("unlabelled.csv", "id,type,prompt\n1,homonyms,How?\n2,contrast_homonyms,Where?\n"),
    ]);
    let items = data.load("xstest", "xstest_prompts.csv", &[]).unwrap().items;
    assert_eq!((items[0].kind, items[1].kind, items[1].turns[0].as_str()), (Kind::Benign, Kind::Harmful, "Poison, where?"));
    assert_eq!(items[1].tags, ["contrast_homonyms"]);
    let unlabelled = data.load("xstest", "unlabelled.csv", &[]).unwrap().items;
    assert_eq!((unlabelled[0].kind, unlabelled[1].kind), (Kind::Benign, Kind::Harmful), "the type tells too");
    assert!(data.fails("xstest", "odd.csv", &[]).contains("DIR/odd.csv:2: `label` is `fine`; it is `safe` or `unsafe`"));
}

#[test]
fn advbench_x_is_read_in_all_three_ways() {
    let of = |data: &Data, path: &str| data.load("advbench-x", path, &["sw", "jp"]).unwrap();
    let lists = Data::of(&[
        ("advbench_sw.json", "\u{feff}{\"safety\": [\"moja\",\n \"mbili\"]}"),
        ("advbench_jp.json", "{\"safety\": [{\"prompt\": \"一\"}, \"二\"]}"),
        ("zh.json", "{\"safety\": [\"一\"]}"),
    ]);
    let columns = Data::of(&[("a.csv", "en,sw,jp\none,moja,一\ntwo,mbili,二\n")]);
    let rows = Data::of(&[(
        "a.jsonl",
        "{\"lang\": \"sw\", \"prompt\": \"moja\"}\n{\"lang\": \"jp\", \"prompt\": \"一\"}\n{\"lang\": \"sw\", \"prompt\": \"mbili\"}\n{\"lang\": \"ja\", \"prompt\": \"二\"}\n",
    )]);
    let expected = [("sw", "0", "moja"), ("sw", "1", "mbili"), ("ja", "0", "一"), ("ja", "1", "二")];
    for (data, path) in [(&lists, ""), (&columns, "a.csv"), (&rows, "a.jsonl")] {
        assert_eq!(shown(&of(data, path).items), expected, "{path}");
    }
    assert_eq!(of(&columns, "a.csv").items[1].english, ["two"], "it is there, though nobody asked for it");
    assert!(
        lists.fails("advbench-x", "", &["sw", "zh"]).contains("`sw` has 2 prompts and `zh` has 1: translations are paired by their place")
    );
    assert!(lists.fails("advbench-x", "", &["sw", "bn"]).contains("there is no file for bn among"));
    assert!(lists.fails("advbench-x", "zh.json", &["zh", "en"]).contains("is the list of one language: say which"));
    assert_eq!(lists.load("advbench-x", "zh.json", &["zh"]).unwrap().items.len(), 1);
    assert!(columns.fails("advbench-x", "a.csv", &["ko"]).contains("DIR/a.csv:2: there is no column `ko`"));
    let odd = Data::of(&[("en.json", "{\"safety\": [\"a\", 3]}"), ("sw.json", "[\"a\"]")]);
    assert!(odd.fails("advbench-x", "", &["en"]).contains("entry 2 of `safety` is no text"));
    assert!(odd.fails("advbench-x", "", &["sw"]).contains("has no list `safety`; it should be `{\"safety\": [prompts]}`"));
    let nowhere = Source { environment: &odd.environment, data: None, revision: None };
    let error = bench::load(bench::find("advbench-x").unwrap(), &nowhere, &[]).unwrap_err().to_string();
    assert_eq!(error, "`advbench-x` cannot be downloaded: give its file or folder with `--data`");
}

const CATEGORIES: [&str; 14] = [
    "commonsense",
    "Crimes_And_Illegal_Activities",
    "Ethics_And_Morality",
    "Goal_Hijacking",
    "Inquiry_With_Unsafe_Opinion",
    "Insult",
    "Mental_Health",
    "Physical_Harm",
    "Privacy_And_Property",
    "Prompt_Leaking",
    "Reverse_Exposure",
    "Role_Play_Instruction",
    "Unfairness_And_Discrimination",
    "Unsafe_Instruction_Topic",
];

#[test]
fn xsafety_has_no_names_and_bengali_may_be_a_workbook() {
    let data = Data::of(&[("README.md", "")]);
    let put = |name: &str, text: &str| {
        let path = data.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for category in CATEGORIES {
        put(&format!("de/{category}.csv"), "\"Erste, mit Komma\nund Zeile\"\n Zweite\nDritte\n");
        put(&format!("en/{category}_en.csv"), "First\r\nSecond\r\nThird\r\n");
        put(&format!("bn/{category}_n.csv"), "এক\nদুই\nতিন\n");
    }
    put("hi/commen_sense.csv", "एक\n");
    fs::remove_file(data.dir.path().join("bn/Insult_n.csv")).unwrap();
    fs::copy(fixture("Insult.xlsx"), data.dir.path().join("bn/Insult.xlsx")).unwrap();

    let loaded = data.load("xsafety", "", &["de", "en", "bn"]).unwrap();
    assert_eq!((loaded.items.len(), loaded.files.len()), (3 * 14 * 3, 3 * 14));
    let of = |lang: &str, id: &str| loaded.items.iter().find(|item| item.lang == lang && item.id == id).unwrap();
    assert_eq!(
        (of("de", "commonsense/0").turns[0].as_str(), of("de", "insult/1").turns[0].as_str()),
        ("Erste, mit Komma\nund Zeile", " Zweite")
    );
    assert_eq!((of("bn", "insult/1").turns[0].as_str(), of("bn", "insult/2").turns[0].as_str()), ("গোলাপে, কখন জল দেব?", "আজ কী বার?\nবলো।"));
    assert_eq!(of("en", "insult/2").doc, json!({ "file": "en/Insult_en.csv", "line": 3, "prompt": "Third" }));
    assert_eq!(of("en", "insult/2").tags, ["insult"]);
    assert!(loaded.notes.iter().any(|note| note.contains("2800 prompts")));

    put("en/Insult_en.csv", "First\nSecond\n");
    let notes = data.load("xsafety", "", &["de", "en"]).unwrap().notes;
    assert!(notes[0].contains("`insult` has 2 in en, 3 in de: do not compare these languages prompt by prompt"), "{notes:?}");
    assert!(data.fails("xsafety", "", &["hi"]).contains("the folder `hi` lacks crimes_and_illegal_activities"));
    assert!(data.fails("xsafety", "", &["zh"]).contains("there is no folder `zh` with files like `Insult.csv`"));
    put("de/Insult_n.csv", "Noch einmal\n");
    assert!(data.fails("xsafety", "", &["de"]).contains("`de/Insult.csv` and `de/Insult_n.csv` are both the category `insult`"));
    assert!(data.fails("xsafety", "README.md", &["de"]).contains("is one file; `xsafety` is the folder"));
}

#[test]
fn prompts_of_a_user_are_read_and_all_their_problems_told() {
    let good = "{\"id\": 1, \"lang\": \"SW\", \"prompt\": \"Habari?\", \"kind\": \"benign\", \"tags\": [\"greeting\"], \"english\": \"How are you?\"}\n\n\
        {\"id\": \"1\", \"lang\": \"bn\", \"prompt\": \"কেমন আছ?\", \"kind\": \"benign\"}\n\
        {\"id\": \"2\", \"lang\": \"sw\", \"prompt\": \"Siri?\", \"kind\": \"harmful\"}\n";
    let bad = "{\"id\": \"1\", \"lang\": \"sw\", \"prompt\": \" \", \"kind\": \"safe\"}\n{\"lang\": \"sw\", \"prompt\": \"x\", \"kind\": \"benign\", \"tag\": []}\n\
        {\"id\": \"2\", \"lang\": \"sw\", \"prompt\": \"x\", \"kind\": \"benign\"}\n{\"id\": \"2\", \"lang\": \"sw\", \"prompt\": \"y\", \"kind\": \"benign\"}\n";
    let many = "{\"id\": \"1\"}\n".repeat(6);
    let data = Data::of(&[("good.jsonl", good), ("bad.jsonl", bad), ("many.jsonl", &many)]);
    let loaded = data.load("prompts", "good.jsonl", &[]).unwrap();
    assert_eq!(shown(&loaded.items), [("sw", "1", "Habari?"), ("sw", "2", "Siri?"), ("bn", "1", "কেমন আছ?")], "language by language");
    assert_eq!(
        (loaded.items[0].kind, loaded.items[1].kind, &loaded.items[0].english),
        (Kind::Benign, Kind::Harmful, &vec!["How are you?".to_owned()])
    );
    assert_eq!(data.load("prompts", "good.jsonl", &["bn"]).unwrap().items.len(), 1);
    assert!(data.fails("prompts", "good.jsonl", &["bn", "ko"]).contains("no prompts in `ko`; it has"));

    let error = data.fails("prompts", "bad.jsonl", &[]);
    let lines: Vec<_> = error.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "the prompts cannot be used:",
            "DIR/bad.jsonl:1: `prompt` is empty",
            "DIR/bad.jsonl:1: `kind` is `safe`; it is `harmful` or `benign`",
            "DIR/bad.jsonl:2: there is no `id`; there are `lang`, `prompt`, `kind`, `tag`",
            "DIR/bad.jsonl:2: unknown key `tag`; the keys are id, lang, prompt, kind, tags, english, answer, chosen, rejected",
            "DIR/bad.jsonl:4: the id `2` in `sw` is that of DIR/bad.jsonl:3 too",
        ]
    );
    assert!(data.fails("prompts", "many.jsonl", &[]).ends_with("and 8 more"));
}

#[test]
fn mgsm_is_tabs_and_nothing_else() {
    let data = Data::of(&[
        ("mgsm_sw.tsv", "\u{feff}\"Mbili\" na mbili?\t4\nElfu, mbili na mia moja ishirini na tano?\t2,125\r\n"),
        ("mgsm_es.tsv", "Dos\ty\t4\n"),
        ("mgsm_fr.tsv", "Deux?\t4.5\n"),
    ]);
    let items = data.load("mgsm", "", &["sw"]).unwrap().items;
    assert!(items[0].turns[0].ends_with("\n\n\"Mbili\" na mbili?"), "a quote is a quote");
    assert_eq!((items[0].target.as_deref(), items[1].target.as_deref(), items[1].id.as_str()), (Some("4"), Some("2125"), "1"));
    let of_parquet = load(&data.environment, "mgsm-native-cot", &fixture("mgsm.parquet"), &["sw"]).unwrap().items;
    assert_eq!(of_parquet[0].turns[0], "Swali: Mbili na mbili?\nJibu la Hatua kwa Hatua:");
    assert_eq!((of_parquet[1].target.as_deref(), of_parquet.len()), (Some("2125"), 2));
    assert!(data.fails("mgsm", "", &["es"]).contains("DIR/mgsm_es.tsv:1: a line is a problem, a tab and a number; this one has 3 parts"));
    assert!(data.fails("mgsm", "mgsm_fr.tsv", &["fr"]).contains("DIR/mgsm_fr.tsv:1: the answer `4.5` is no whole number"));
    assert!(data.fails("mgsm", "mgsm_fr.tsv", &[]).contains("one for each of 11 languages: say which it is (`--langs bn`)"));
    assert!(data.fails("mgsm", "", &["ko"]).contains("Qwen/P-MMEval"));
}

const MMMLU: &str = ",Question,A,B,C,D,Answer,Subject\n0,\"Mbili\nna mbili?\",3,4,5,6,B,abstract_algebra\n1,Sayari kubwa?,Mars,Venus,Dunia,Jupiter,D,astronomy\n";

#[test]
fn mmmlu_has_a_file_for_each_locale_and_english_of_another_repository() {
    let odd = MMMLU.replace(",D,astronomy", ",E,astronomy");
    let data = Data::of(&[("test/mmlu_SW-KE.csv", MMMLU), ("test/mmlu_ZH-CN.csv", MMMLU), ("odd.csv", &odd)]);
    fs::create_dir(data.dir.path().join("all")).unwrap();
    fs::copy(fixture("mmlu.parquet"), data.dir.path().join("all/test-00000-of-00001.parquet")).unwrap();
    let items = data.load("mmmlu", "", &["sw", "en", "zh"]).unwrap().items;
    assert_eq!(
        items.iter().map(|item| (item.lang.as_str(), item.id.as_str())).collect::<Vec<_>>(),
        [("sw", "0"), ("sw", "1"), ("en", "0"), ("en", "1"), ("zh", "0"), ("zh", "1")]
    );
    assert_eq!((items[1].target.as_deref(), items[3].target.as_deref(), items[3].choices.len()), (Some("D"), Some("D"), 4));
    assert!(items[3].turns[0].contains("about astronomy.\n\nThe largest planet?\nA. Mars\nB. Venus\nC. Earth\nD. Jupiter\nAnswer:"));
    assert!(items[0].turns[0].contains("(Swahili).\n\nMbili\nna mbili?\nA. 3"));
    assert!(data.fails("mmmlu", "odd.csv", &["sw"]).contains("DIR/odd.csv:4: the answer is `E`; it is one of A, B, C, D"));
    assert!(data.fails("mmmlu", "", &["ko"]).contains("there is no file for ko among"));

    let reordered = "Question,A,B,C,D,Answer,Subject\nx,1,2,3,4,D,astronomy\ny,1,2,3,4,B,abstract_algebra\n";
    fs::write(data.dir.path().join("test/mmlu_SW-KE.csv"), reordered).unwrap();
    let loaded = data.load("mmmlu-generative", "", &["sw", "en"]).unwrap();
    assert_eq!((loaded.items[2].id.as_str(), loaded.items[0].id.as_str()), ("en/0", "0"), "no pairs of different questions");
    assert!(loaded.notes.iter().any(|note| note.contains("not in the order of the translations")));
}

#[test]
fn mt_bench_has_turns_temperatures_and_references() {
    let question =
        |id: u32, category: &str| format!("{}\n", json!({ "question_id": id, "category": category, "turns": ["First?", "Second?"] }));
    let reference = json!({ "question_id": 111, "choices": [{ "index": 0, "turns": ["one", "two"] }] }).to_string();
    let questions = [question(81, "writing"), question(111, "math"), question(121, "stem")].concat();
    let data = Data::of(&[
        ("question.jsonl", &questions),
        ("reference_answer/gpt-4.jsonl", &reference),
        ("ja/question.jsonl", &question(111, "math")),
        ("odd.jsonl", &question(81, "poetry")),
        ("short/question.jsonl", &question(111, "math")),
        ("short/reference_answer.jsonl", &json!({ "question_id": 111, "choices": [{ "turns": ["one"] }] }).to_string()),
    ]);
    let loaded = data.load("mt-bench", "question.jsonl", &[]).unwrap();
    let temperatures: Vec<_> = loaded.items.iter().map(|item| item.temperature.unwrap()).collect();
    assert_eq!(temperatures, [0.7, 0.0, 0.1]);
    assert_eq!((loaded.items[1].turns.len(), loaded.items[1].target.as_deref()), (2, Some("[\"one\",\"two\"]")));
    assert_eq!((loaded.items[0].target.as_ref(), loaded.items[0].lang.as_str(), loaded.items[0].tags[0].as_str()), (None, "en", "writing"));
    let names: Vec<_> = loaded.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["reference_answer/gpt-4.jsonl", "question.jsonl"]);
    assert_eq!(loaded.notes.len(), 1, "80 are published; none lacks a reference: {:?}", loaded.notes);

    let japanese = data.load("mt-bench", "", &["ja"]).unwrap();
    assert_eq!((japanese.items[0].lang.as_str(), japanese.items[0].target.as_ref()), ("ja", None), "no English reference for it");
    assert!(japanese.notes[0].contains("1 questions of math, reasoning, coding have no reference answer"), "{:?}", japanese.notes);
    assert!(data.fails("mt-bench", "odd.jsonl", &[]).contains("DIR/odd.jsonl:1: `category` is `poetry`; it is one of writing, roleplay,"));
    assert!(data.fails("mt-bench", "short/question.jsonl", &[]).contains("the question has 2 turns, and its reference answer 1"));
}

#[test]
fn reward_gap_reads_preference_pairs() {
    let pair = |prompt: &str| json!({ "prompt": prompt, "chosen": "Hapana.", "rejected": "Ndiyo." });
    let row =
        json!({ "id": "7", "dominant": { "lang": "en", "prompt": "How?", "chosen": "No.", "rejected": "Yes." }, "target": pair("Vipi?") });
    let mut row_sw = row.clone();
    row_sw["target"]["lang"] = json!("sw");
    let one_answer = json!({ "prompt": "Vipi?", "completion": "Ndiyo.", "label": false });
    let data = Data::of(&[("pairs.jsonl", &row_sw.to_string()), ("one.jsonl", &one_answer.to_string())]);
    let items = data.load("reward-gap", "pairs.jsonl", &["sw"]).unwrap().items;
    assert_eq!(shown(&items), [("sw", "7", "Vipi?")]);
    assert_eq!((&items[0].english, items[0].target.as_deref()), (&vec!["How?".to_owned()], Some("Hapana.")));
    assert_eq!(reward_gap::pairs(&data.dir.path().join("pairs.jsonl")).unwrap()[0].id, items[0].id);
    assert!(data.fails("reward-gap", "one.jsonl", &[]).contains("has one answer only; a reward gap is the difference of two"));
    let bench = bench::find("reward-gap").unwrap();
    assert!(bench.card().max_new_tokens == 0 && bench.card().rubric(Kind::Harmful).is_none());
}

/// A hub on which `DAMO-NLP-SG/MultiJail` is.
fn hub(text: &str) -> World {
    World::named("DAMO-NLP-SG/MultiJail", Files::from([("MultiJail.csv".to_owned(), text.as_bytes().to_vec())]))
}

fn from_hub(environment: &Environment, revision: Option<&str>) -> anyhow::Result<Loaded> {
    let source = Source { environment, data: None, revision };
    bench::load(bench::find("multijail")?, &source, &["sw".to_owned()])
}

#[test]
fn a_download_is_noted_and_checked_from_then_on() {
    let world = hub(MULTIJAIL);
    let environment = world.environment(None);
    let first = from_hub(&environment, None).unwrap();
    let file = &first.files[0];
    assert_eq!((file.repo.as_deref(), file.commit.as_deref()), (Some("DAMO-NLP-SG/MultiJail"), Some("1".repeat(40).as_str())));
    let note = fs::read_to_string(environment.mpo_cache.join("bench/DAMO-NLP-SG--MultiJail.json")).unwrap();
    assert!(note.contains(&file.sha256) && note.contains(&"1".repeat(40)), "{note}");
    // The cache answers from now on, also without a network.
    let n_requests = world.n_requests();
    assert_eq!(from_hub(&world.offline(), None).unwrap().items, first.items);
    assert_eq!(world.n_requests(), n_requests);
    // Another revision where it is asked for; the first stays the one that is used.
    assert_eq!(from_hub(&environment, Some("v1")).unwrap().files[0].commit.as_deref(), Some("2".repeat(40).as_str()));
    assert_eq!(from_hub(&environment, None).unwrap().files, first.files);

    fs::write(fs::canonicalize(&file.path).unwrap(), MULTIJAIL.replace("Lini", "Leo")).unwrap();
    let error = format!("{:#}", from_hub(&environment, None).unwrap_err());
    assert!(error.contains("`MultiJail.csv` has sha256") && error.contains("when it was first downloaded: somebody changed it"), "{error}");
    assert!(error.contains("bench/DAMO-NLP-SG--MultiJail.json"), "{error}");
}

#[test]
fn what_is_neither_here_nor_reachable_is_told_how_to_get() {
    let error = format!("{:#}", from_hub(&hub(MULTIJAIL).offline(), None).unwrap_err());
    assert!(
        error.contains("hf download --repo-type dataset DAMO-NLP-SG/MultiJail --include \"MultiJail.csv\" --local-dir multijail"),
        "{error}"
    );
    assert!(error.contains("then `--data multijail`") && error.contains("HF_HUB_OFFLINE is set"), "{error}");
    let world = World::named("DAMO-NLP-SG/MultiJail", Files::from([("README.md".to_owned(), b"moved".to_vec())]));
    let error = format!("{:#}", from_hub(&world.environment(None), None).unwrap_err());
    assert!(error.contains("there is no file of `multijail` (MultiJail.csv) among `README.md`"), "{error}");
}

/// `tests/oracle/answers.py` evaluated the patterns of the public scorers on these.
#[test]
fn answers_are_read_as_the_published_patterns_read_them() {
    type Row = (String, String, String, String, String, Option<char>);
    let rows: Vec<Row> = serde_json::from_str(&fs::read_to_string(fixture("answers.json")).unwrap()).unwrap();
    assert_eq!(rows.len(), 600);
    for (lang, text, simple, strict, flexible, letter) in rows {
        let language = mgsm::language(&lang).unwrap();
        let read = |filter: Filter| filter.parse(&text, language);
        let found = (read(Filter::SimpleEvals), read(Filter::StrictMatch), read(Filter::FlexibleExtract), mmmlu::letter(&text));
        assert_eq!(found, (simple, strict, flexible, letter), "{text:?}");
    }
}

/// The published files themselves, in a folder as `MPO_BENCH_DATA` names it: `multijail/MultiJail.csv csrt/csrt.csv xstest/xstest_prompts.csv
/// mgsm/mgsm_LANG.tsv mt_bench/question.jsonl`. They are no part of this repository.
#[test]
#[ignore = "needs the published files: MPO_BENCH_DATA=FOLDER cargo test --test it bench:: -- --ignored"]
fn the_published_files_are_read_whole() {
    let folder = PathBuf::from(std::env::var_os("MPO_BENCH_DATA").expect("MPO_BENCH_DATA names the folder"));
    let environment = offline();
    let read = |bench: &str, data: &str| load(&environment, bench, &folder.join(data), &[]).unwrap();
    let mut multijail = None;
    for (bench, data, n, n_files) in [
        ("multijail", "multijail", 3150, 1),
        ("csrt", "csrt", 315, 1),
        ("xstest", "xstest", 450, 1),
        ("mgsm", "mgsm", 2750, 11),
        ("mgsm-native-cot", "mgsm", 2750, 11),
        ("mt-bench", "mt_bench", 80, 2),
    ] {
        let loaded = read(bench, data);
        assert_eq!((loaded.items.len(), loaded.files.len()), (n, n_files), "{bench}");
        assert_eq!(loaded.notes, [""; 0], "{bench}: as published");
        assert!(loaded.files.iter().all(|file| file.known.is_some()), "{bench}: {:?}", loaded.files);
        let n_langs = loaded.items.iter().map(|item| &item.lang).collect::<std::collections::BTreeSet<_>>().len();
        let some = bench::subset(loaded.items.clone(), 20, 0);
        assert_eq!(some.len(), 20 * n_langs, "{bench}");
        match bench {
            "multijail" => multijail = Some(loaded),
            "csrt" => {
                let english: Vec<_> = multijail.iter().flat_map(|loaded| &loaded.items).filter(|item| item.lang == "en").collect();
                assert!(loaded.items.iter().zip(english).all(|(mixed, english)| mixed.id == english.id), "ids are MultiJail's");
            }
            "xstest" => assert_eq!(some.iter().filter(|item| item.kind == Kind::Benign).count(), 11),
            "mt-bench" => assert_eq!(loaded.items.iter().filter(|item| item.target.is_some()).count(), 30),
            _ => {}
        }
    }
}
