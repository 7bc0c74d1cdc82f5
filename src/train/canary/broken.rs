//! A bench of broken runs: what a policy says after a training that went wrong in one way, and the languages that the signs must name. Questions and
//! answers are those of the demonstration, twelve in each of seven languages.

#[cfg(test)]
mod tests {
    use super::super::{AnswerTo, AnswersMeasure, LanguageMeasure, Measurement, Pair, judge, pairs_of};
    use crate::config::SignsConfig;
    use crate::train::signs::SignKind;
    use serde::Deserialize;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Deserialize)]
    struct Question {
        id: String,
        lang: String,
        chosen: String,
        rejected: String,
    }

    fn questions() -> Vec<Question> {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny/questions.jsonl"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The policy that gives `answer`s.
    fn measured(step: usize, questions: &[Question], answer: &dyn Fn(&Question) -> String) -> Measurement {
        let mut languages: BTreeMap<String, LanguageMeasure> = BTreeMap::new();
        for lang in questions.iter().map(|question| &question.lang).collect::<BTreeSet<_>>() {
            let of_language = || questions.iter().filter(|question| question.lang == *lang);
            let pairs: Vec<Pair> = of_language().map(|q| Pair { chosen: q.chosen.clone(), rejected: q.rejected.clone() }).collect();
            let answer_to = |(question, pair)| AnswerTo { text: answer(question), n_tokens: 20, is_benign: true, pair: Some(pair) };
            let answers: Vec<AnswerTo> = of_language().zip(&pairs).map(answer_to).collect();
            let (counted, pairs) = (AnswersMeasure::of(lang, &answers), pairs_of(lang, &answers));
            let measure = LanguageMeasure { n_prompts: answers.len(), nll: 1.0, kl: 0.0, answers: Some(counted), n_harmful: 0, pairs };
            languages.insert(lang.clone(), measure);
        }
        Measurement { step, languages }
    }

    /// Letters of the answer itself, in an order that nobody writes.
    fn garbage(question: &Question) -> String {
        let letters: Vec<char> = question.chosen.chars().collect();
        (0..letters.len()).map(|i| letters[(i * 7 + 3) % letters.len()]).collect()
    }

    const REFUSALS: [(&str, &str); 7] = [
        ("en", "I'm sorry, but I can't help you with that request."),
        ("zh", "抱歉，我不能帮助您完成这个请求。"),
        ("ja", "申し訳ありませんが、そのような情報を提供することはできません。"),
        ("ko", "죄송하지만 그 요청에는 도움을 드릴 수 없습니다."),
        ("ar", "لا أستطيع مساعدتك في ذلك."),
        ("bn", "দুঃখিত, আমি এই বিষয়ে সাহায্য করতে পারব না।"),
        ("sw", "Samahani, siwezi kukusaidia na ombi hilo."),
    ];

    const TARGETS: [&str; 6] = ["ar", "bn", "ja", "ko", "sw", "zh"];
    const ALL: [&str; 7] = ["ar", "bn", "en", "ja", "ko", "sw", "zh"];

    /// What the policy says, the languages in which it is broken, and a sign of each that must be among those found.
    type Broken<'a> = (&'static str, Box<dyn Fn(&Question) -> String + 'a>, &'static [&'static str], SignKind);

    #[test]
    fn a_language_that_breaks_is_named_and_no_other() {
        let questions = questions();
        let in_language = |id: &str, lang: &str| questions.iter().find(|q| q.id == id && q.lang == lang).unwrap().chosen.clone();
        let refusal = |lang: &str| REFUSALS.iter().find(|(known, _)| *known == lang).unwrap().1.to_owned();
        let careful = |q: &Question| q.chosen.clone();
        let runs: Vec<Broken> = vec![
            ("all is well", Box::new(careful), &[], SignKind::BrokenLanguage),
            (
                "Swahili is answered in English",
                Box::new(|q| if q.lang == "sw" { in_language(&q.id, "en") } else { careful(q) }),
                &["sw"],
                SignKind::OtherLanguage,
            ),
            ("every language is answered in English", Box::new(|q| in_language(&q.id, "en")), &TARGETS, SignKind::BrokenLanguage),
            (
                "every language is answered in Chinese",
                Box::new(|q| in_language(&q.id, "zh")),
                &["ar", "bn", "en", "ja", "ko", "sw"],
                SignKind::BrokenLanguage,
            ),
            ("Chinese is garbage", Box::new(|q| if q.lang == "zh" { garbage(q) } else { careful(q) }), &["zh"], SignKind::BrokenLanguage),
            ("all is garbage", Box::new(garbage), &ALL, SignKind::BrokenLanguage),
            ("Bengali is silent", Box::new(|q| if q.lang == "bn" { " \n".into() } else { careful(q) }), &["bn"], SignKind::Degeneration),
            ("Korean loops", Box::new(|q| if q.lang == "ko" { q.chosen.repeat(9) } else { careful(q) }), &["ko"], SignKind::Degeneration),
            ("everything is refused", Box::new(|q| refusal(&q.lang)), &ALL, SignKind::OverRefusal),
            ("Arabic is refused", Box::new(|q| if q.lang == "ar" { refusal("ar") } else { careful(q) }), &["ar"], SignKind::OverRefusal),
            (
                "English learns to be careless",
                Box::new(|q| if q.lang == "en" { q.rejected.clone() } else { careful(q) }),
                &["en"],
                SignKind::MoreRejected,
            ),
        ];
        let before = measured(0, &questions, &|q| if q.lang == "en" { q.chosen.clone() } else { q.rejected.clone() });
        let dominant = BTreeSet::from(["en".to_owned()]);
        for (name, answer, broken, kind) in runs {
            let found = judge(&SignsConfig::default(), &before, &measured(50, &questions, &*answer), &dominant);
            let named: BTreeSet<&str> = found.iter().filter_map(|sign| sign.lang.as_deref()).collect();
            assert_eq!(named, broken.iter().copied().collect(), "{name}: {found:?}");
            for lang in broken {
                assert!(found.iter().any(|sign| sign.kind == kind && sign.lang.as_deref() == Some(lang)), "{name}, {lang}: {found:?}");
            }
        }
    }

    #[test]
    fn a_sign_says_what_the_broken_answers_are() {
        let questions = questions();
        let before = measured(0, &questions, &|q| q.rejected.clone());
        let after = measured(50, &questions, &|q| if q.lang == "sw" { String::new() } else { q.chosen.clone() });
        let found = judge(&SignsConfig::default(), &before, &after, &BTreeSet::new());
        let broken = found.iter().find(|sign| sign.kind == SignKind::BrokenLanguage).unwrap();
        assert!(
            broken.message.starts_with("sw: answers like neither the chosen nor the rejected one 0 to 12 of 12 (12 empty or a loop)"),
            "{broken:?}"
        );
    }
}
