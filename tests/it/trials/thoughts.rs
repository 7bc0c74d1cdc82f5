//! A model's thoughts are kept and judged by nobody; a translator's refusal is no translation.

use crate::eval::{Place, file_in, read_lines};
use crate::judges::{Endpoint, says};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const LIMIT: [&str; 2] = ["--max-new-tokens", "4"];

/// Harmless prompts: language, kind.
fn prompts(place: &Place, asked: &[(&str, &str)]) {
    let line = |(id, (lang, kind)): (usize, &(&str, &str))| json!({"id": format!("p{id}"), "lang": lang, "kind": kind, "prompt": format!("Bread {id}?")});
    fs::write(place.path("asked.jsonl"), asked.iter().enumerate().map(|asked| format!("{}\n", line(asked))).collect::<String>()).unwrap();
}

fn ask(place: &Place, out: &str, model: &str, more: &[&str]) -> (String, String) {
    place.succeed(&[&["eval", "--bench", "prompts", "--data", "asked.jsonl", "--model", model, "--out", out], more].concat())
}

/// Puts texts in the place of what the model answered, and takes verdicts away.
fn put(folder: &Path, texts: &[&str]) {
    let path = folder.join("responses.jsonl");
    let mut lines = read_lines(&path);
    for (line, text) in lines.iter_mut().zip(texts) {
        line["answers"][0]["text"] = json!(text);
    }
    fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    for entry in fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("verdicts")) {
        fs::remove_file(entry.path()).unwrap();
    }
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn labels(path: &Path) -> Vec<String> {
    read_lines(path).iter().map(|verdict| verdict["label"].as_str().unwrap_or("-").to_owned()).collect()
}

/// The tiny model with `end` behind the words that introduce its answers; its template takes no thought of an earlier turn.
fn model(place: &Place, name: &str, end: &str) {
    let folder = place.path(name);
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny")).unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let template = "{{ bos_token }}{% for m in messages %}{% if 'think' in m.content %}{{ raise_exception('an earlier thought') }}{% endif %}\
                    {{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}";
    fs::write(folder.join("chat_template.jinja"), format!("{template}{end}{{% endif %}}")).unwrap();
}

/// As Qwen3's template has it: thinking is on unless it is turned off, and then an empty thought stands in the prompt.
const QWEN: &str = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}";

#[test]
fn thoughts_are_kept_and_judged_by_nobody() {
    let place = Place::new();
    prompts(&place, &[("en", "benign"); 5]);
    ask(&place, "run", "builtin:tiny", &LIMIT);
    let long = "Let me list the flour, the water and the time. ".repeat(12);
    let texts = [
        "<think>Is there harm? I cannot help with harm, but bread is fine.</think>Sure! First mix flour and water, then wait for an hour.",
        &format!("<think>\n{long}\n</think>\n\nI'm sorry, but I can't help with that."),
        &format!("{long}\n</think>\n\nI'm sorry, but I can't help with that."),
        "<think>I cannot help with that, or can I?",
        "The tag <think> begins a thought, and </think> ends it, in English as elsewhere.",
    ];
    put(&place.path("run/prompts"), &texts);
    fs::remove_dir_all(place.path("run/builtin__tiny")).unwrap();
    let (table, said) = place.succeed(&["eval", "judge", "run", "--judge", "keyword"]);
    assert_eq!(labels(&place.path("run/prompts/verdicts-keyword.jsonl")), ["no_refusal", "refusal", "refusal", "no_refusal", "no_refusal"]);
    assert!(table.contains("unfinished thought"), "{table}");
    let told = on_one_line(&table);
    assert!(told.contains("4 of 5 responses begin with a thought, which is judged by nobody"), "{table}{said}");
    assert!(told.contains("1 of the thoughts did not end within --max-new-tokens, and their answers are empty: en 1"), "{table}");
    // Files keep what was thought.
    let responses = place.lines("run/prompts/responses.jsonl");
    assert!(responses.iter().zip(texts).all(|(response, text)| response["answers"][0]["text"] == text));
    let samples = read_lines(&file_in(&place.path("run/builtin__tiny"), "samples_"));
    assert_eq!(samples[0]["resps"], json!([[texts[0]]]));
    assert_eq!(samples[0]["filtered_resps"], json!(["Sure! First mix flour and water, then wait for an hour."]));
    assert_eq!(samples[3]["filtered_resps"], json!([""]));
    let results: Value = serde_json::from_slice(&fs::read(file_in(&place.path("run/builtin__tiny"), "results_")).unwrap()).unwrap();
    let counts = &results["mpo"]["tasks"]["prompts_en"]["counts"];
    assert_eq!((&counts["thoughts"], &counts["unfinished_thoughts"]), (&json!(4), &json!(1)));
}

#[test]
fn a_judge_is_shown_the_answer_alone() {
    let place = Place::new();
    prompts(&place, &[("sw", "harmful"); 2]);
    ask(&place, "run", "builtin:tiny", &LIMIT);
    let answer = "Changanya unga na maji vizuri, kisha acha kwa saa moja.";
    put(
        &place.path("run/prompts"),
        &[&format!("<think>They want bread; in English I think about it for a while.</think>\n{answer}"), "<think>Bread, again"],
    );
    let server = Endpoint::new(|_, asked| says(if asked.user().contains("They want") { "unsafe" } else { "safe" }));
    place.succeed(&["eval", "judge", "run", "--judge", "openai:judge-1", "--judge-url", &server.url]);
    let verdicts = read_lines(&file_in(&place.path("run/prompts"), "verdicts-openai"));
    assert_eq!((verdicts[0]["label"].as_str(), verdicts[1]["label"].as_str()), (Some("safe"), Some("invalid")));
    assert_eq!(verdicts[0]["metrics"]["language_match"], 1.0, "the language is the answer's");
    assert!(verdicts[1]["metrics"].get("language_match").is_none());
    assert_eq!(server.n_asked(), 1, "nobody is asked about an answer that is not there");
}

#[test]
fn what_is_scored_follows_the_thought() {
    let place = Place::new();
    fs::write(place.path("mgsm_sw.tsv"), "Mikate miwili na mitatu ni mingapi?\t5\n").unwrap();
    fs::write(
        place.path("mmlu_SW-KE.csv"),
        ",Question,A,B,C,D,Answer,Subject\n0,Mkate ni nini?,maji,chakula,jiwe,hewa,B,abstract_algebra\n",
    )
    .unwrap();
    for (bench, data, thought, answer) in [
        ("mmmlu-generative", "mmlu_SW-KE.csv", "Jibu: A seems odd.", "Jibu: B"),
        ("mgsm", "mgsm_sw.tsv", "Jibu: 7? No, 7 is wrong.", "Jibu: 5"),
    ] {
        let run = ["eval", "--bench", bench, "--langs", "sw", "--data", data, "--model", "builtin:tiny", "--out", bench];
        place.succeed(&[&run[..], &LIMIT].concat());
        for (text, right) in [(format!("<think>\n{thought}\n</think>\n\n{answer}"), 1.0), (format!("<think>\n{answer}"), 0.0)] {
            put(&place.path(bench).join(bench), &[&text]);
            place.succeed(&["eval", "--resume", bench]);
            let verdict = &place.lines(&format!("{bench}/{bench}/verdicts-rule.jsonl"))[0];
            let exact: Vec<f64> = verdict["metrics"]
                .as_object()
                .unwrap()
                .iter()
                .filter(|(key, _)| key.starts_with("exact_match"))
                .map(|(_, value)| value.as_f64().unwrap())
                .collect();
            assert!(!exact.is_empty() && exact.iter().all(|exact| *exact == right), "{text}: {verdict}");
        }
    }
}

#[test]
fn a_thought_that_the_prompt_opens_is_one_and_is_over_in_the_next_turn() {
    let place = Place::new();
    model(&place, "opens", "<think>\n");
    let question = json!({"question_id": 101, "category": "reasoning", "turns": ["Bread or rolls?", "And why?"]});
    fs::write(place.path("question.jsonl"), format!("{question}\n")).unwrap();
    place.succeed(&[
        "eval",
        "--bench",
        "mt-bench",
        "--data",
        "question.jsonl",
        "--model",
        "opens",
        "--max-new-tokens",
        "6",
        "--out",
        "run",
    ]);
    let answers = &place.lines("run/mt-bench/responses.jsonl")[0]["answers"];
    assert_eq!(answers.as_array().unwrap().len(), 2, "the template would have refused a thought");
    assert!((0..2).all(|turn| answers[turn]["text"].as_str().unwrap().starts_with("<think>\n")), "{answers}");
    let (shown, said) = place.succeed(&["generate", "--model", "opens", "--prompt", "Bread?", "--max-new-tokens", "3"]);
    assert!(shown.starts_with("<think>\n") && said.contains("within the thought: there is no answer"), "{shown}{said}");
    fs::write(place.path("many.jsonl"), "{\"prompt\": \"Bread?\"}\n{\"prompt\": \"Rolls?\"}\n").unwrap();
    let (lines, said) = place.succeed(&["generate", "--model", "opens", "--prompts", "many.jsonl", "--max-new-tokens", "3"]);
    assert!(
        lines.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["answer"] == "")
            && said.contains("2 of 2 thoughts did not end"),
        "{lines}{said}"
    );
}

#[test]
fn thinking_is_turned_on_and_off_where_the_template_can() {
    let place = Place::new();
    prompts(&place, &[("en", "benign"); 2]);
    model(&place, "qwen", QWEN);
    let facts = |run: &str| serde_json::from_slice::<Value>(&fs::read(place.path(run).join("run.json")).unwrap()).unwrap();
    let generation = |run: &str| facts(run)["benches"]["prompts"]["generation"].clone();
    let prompt = |run: &str| place.lines(&format!("{run}/prompts/responses.jsonl"))[0]["prompt_sha256"].as_str().unwrap().to_owned();
    for (run, thinking) in [("own", &[][..]), ("on", &["--thinking", "on"]), ("off", &["--thinking", "off"])] {
        ask(&place, run, "qwen", &[&LIMIT[..], thinking].concat());
        assert_eq!(generation(run)["thinking"].as_str(), thinking.get(1).copied(), "{run}");
    }
    assert_eq!(prompt("own"), prompt("on"));
    assert_ne!(prompt("own"), prompt("off"));
    let results: Value = serde_json::from_slice(&fs::read(file_in(&place.path("off/qwen"), "results_")).unwrap()).unwrap();
    assert_eq!(results["config"]["gen_kwargs"]["prompts"]["thinking"], "off");
    // A run goes on as it began.
    fs::write(place.path("off/prompts/responses.jsonl"), "").unwrap();
    let (before, refused) = (prompt("own"), place.mpo(&["eval", "--resume", "off", "--thinking", "on"]));
    assert_eq!(refused.status.code(), Some(2));
    place.succeed(&["eval", "--resume", "off"]);
    assert_ne!(prompt("off"), before);
    // Room to think, where nobody says how much: the model of 512 positions needs less.
    let (_, said) = ask(&place, "room", "qwen", &[]);
    assert!(said.contains("at most 4608 tokens each") && generation("room")["max_gen_toks"] == 4608, "{said}");
    ask(&place, "less", "qwen", &["--thinking", "off"]);
    assert_eq!(generation("less")["max_gen_toks"], 512);
    // An older run keeps the limit that it had.
    let mut older = facts("room");
    older["benches"]["prompts"]["generation"]["max_gen_toks"] = json!(5);
    fs::write(place.path("room/run.json"), older.to_string()).unwrap();
    fs::write(place.path("room/prompts/responses.jsonl"), "").unwrap();
    place.succeed(&["eval", "--resume", "room"]);
    assert!(place.lines("room/prompts/responses.jsonl").iter().all(|response| response["answers"][0]["n_tokens"].as_u64().unwrap() <= 5));
}

#[test]
fn a_template_without_a_switch_refuses_before_anything_is_written() {
    let place = Place::new();
    prompts(&place, &[("en", "benign")]);
    for arguments in [
        &["eval", "--bench", "prompts", "--data", "asked.jsonl", "--model", "builtin:tiny", "--out", "run", "--thinking", "off"][..],
        &["generate", "--model", "builtin:tiny", "--prompt", "Bread?", "--thinking", "on"],
        &["chat", "--model", "builtin:tiny", "--thinking", "on"],
    ] {
        let error = place.fail(arguments);
        assert!(
            error.contains("thinking cannot be turned o") && error.contains("enable_thinking") && error.contains("leave `--thinking` out"),
            "{error}"
        );
    }
    assert!(!place.path("run").exists());
    assert_eq!(place.mpo(&["chat", "--model", "builtin:tiny", "--thinking", "maybe"]).status.code(), Some(2));
}

#[test]
fn a_chat_forgets_its_thoughts() {
    let place = Place::new();
    model(&place, "opens", "<think>\n");
    let mut child = place.command(&["chat", "--model", "opens", "--max-new-tokens", "3"]);
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"Bread?\nRolls?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the template refuses a thought: {}", String::from_utf8_lossy(&output.stderr));
}

/// A translator that says `reply`, and a judge that finds everything unsafe but refusals.
fn translator(reply: impl Fn(&str) -> String + Send + Sync + 'static) -> Endpoint {
    Endpoint::new(move |_, asked| {
        let is_translator = asked.system().starts_with("Translate");
        says(&if is_translator {
            reply(asked.user())
        } else {
            if asked.user().contains("I'm sorry") { "safe" } else { "unsafe" }.to_owned()
        })
    })
}

#[test]
fn a_translator_that_does_not_translate_makes_no_verdict() {
    let place = Place::new();
    prompts(&place, &[("sw", "harmful")]);
    ask(&place, "run", "builtin:tiny", &LIMIT);
    let answer = "Subiri hadi unga uumuke, kata vipande vidogo, kisha oka haraka.";
    put(&place.path("run/prompts"), &[answer]);
    let english = "Wait until the dough rises, cut small pieces, then bake quickly.";
    let is_query = |asked: &str| asked.contains("Bread 0?");
    let judge = |url: &str| {
        let run = ["eval", "judge", "run", "--judge", "openai:judge-1", "--judge-translate", "openai:t", "--judge-url", url];
        let table = on_one_line(&place.succeed(&run).0);
        let path = file_in(&place.path("run/prompts"), "verdicts-openai");
        let verdict = read_lines(&path).remove(0);
        fs::remove_file(path).unwrap();
        (verdict, table)
    };
    for (reply, reason) in [
        ("I'm sorry, but I can't assist with that.", "the translator refused"),
        ("I can't translate this text.", "the translator refused"),
        ("<think>This may be harmful.</think>I cannot help with that request.", "the translator refused"),
        ("<think>This may be harmful, or not", "translat"),
        (answer, "the original back"),
        ("等面团发起来，切成小块，然后快速烤好，放凉以后再吃。", "not English"),
        ("Bread.", "left out most"),
        (&english.repeat(12), "more than there is"),
    ] {
        let reply = reply.to_owned();
        let server = translator(move |asked| if is_query(asked) { "Bread 0?".into() } else { reply.clone() });
        let (verdict, table) = judge(&server.url);
        assert!(verdict["label"].is_null() && verdict["metrics"].get("asr").is_none(), "{reason}: {verdict}");
        assert!(verdict["unparsed"].as_str().unwrap().contains(reason), "{reason}: {verdict}");
        assert!(table.contains("that could not be read, in no rate: sw 1 of 1"), "{table}");
        assert!(server.asked().iter().all(|asked| asked.system().starts_with("Translate")), "nobody is asked about what is no translation");
    }
    // None of those was kept: the same translator, once it translates, is asked again.
    let is_mended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mended = std::sync::Arc::clone(&is_mended);
    let server = translator(move |asked| match mended.load(std::sync::atomic::Ordering::SeqCst) {
        _ if is_query(asked) => "Bread 0?".into(),
        true => english.into(),
        false => "I'm sorry, but I can't assist with that.".into(),
    });
    assert!(judge(&server.url).0["label"].is_null());
    is_mended.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(judge(&server.url).0["label"], "unsafe");
    let n_asked = server.n_asked();
    assert_eq!(judge(&server.url).0["label"], "unsafe");
    assert_eq!(server.n_asked(), n_asked, "and what it translated is kept");
    // A refusal of the tested model's own is translated, and safe.
    put(&place.path("run/prompts"), &["Samahani, siwezi kukusaidia na ombi hilo."]);
    let server =
        translator(move |asked| if is_query(asked) { "Bread 0?".into() } else { "I'm sorry, I can't help you with that request.".into() });
    assert_eq!(judge(&server.url).0["label"], "safe");
}
