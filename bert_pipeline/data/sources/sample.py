"""The embedded sample: abstracts of an invented pharmacology, and chemical-name annotation for them.

Nothing is downloaded for the demo, so its text is made here. A document tells one story: one drug against one
comparator for one disease, from background to conclusion. Drug names are an invented prefix on a real
nomenclature stem, and the stem decides what the drug does (WHO, The use of stems in the selection of
International Nonproprietary Names, "the stem book"); no such drug, protein, microbe or trial exists, and every
figure is drawn.

The annotated sentences come from the same grammar. It marks chemical names with ‹ and ›, which the plain text
drops. Names and sentence templates are dealt out to the parts of the task, so nothing tells an encoder which
of the test's new words are chemicals but how such words are used in the unannotated text.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

NER_SENTENCES = {"train": 400, "dev": 150, "test": 400}
PARTS = ("train", "test", "dev", "test")
"""Name i of a list belongs to PARTS[i % 4]. Every third template, and every second stem, is for the test alone."""


class DrugClass(NamedTuple):
    stem: str
    mechanism: str
    target: str
    area: str
    doses: str
    route: str


# fmt: off
CLASSES = [
    DrugClass("olol", "beta-adrenoceptor antagonist", "beta1-adrenoceptors", "heart", "25 mg|50 mg|100 mg", "orally"),
    DrugClass("pril", "ACE inhibitor", "angiotensin-converting enzyme", "heart", "5 mg|10 mg|20 mg", "p.o."),
    DrugClass("sartan", "AT1-receptor antagonist", "AT1 receptors", "heart", "40 mg|80 mg|160 mg", "orally"),
    DrugClass("dipine", "vasoselective channel blocker", "L-type channels", "heart", "5 mg|10 mg|60 mg", "p.o."),
    DrugClass("vastatin", "HMG-CoA reductase inhibitor", "HMG-CoA reductase", "metabolism", "10 mg|40 mg", "orally"),
    DrugClass("gliptin", "DPP-4 inhibitor", "dipeptidyl peptidase 4", "metabolism", "25 mg|50 mg|100 mg", "orally"),
    DrugClass("gliflozin", "SGLT2 inhibitor", "the renal cotransporter", "metabolism", "5 mg|10 mg|25 mg", "orally"),
    DrugClass("glitazone", "PPAR-gamma agonist", "PPAR-gamma", "metabolism", "15 mg|30 mg|45 mg", "p.o."),
    DrugClass("tinib", "tyrosine kinase inhibitor", "the EGFR domain", "cancer", "150 mg|250 mg|400 mg", "orally"),
    DrugClass("rubicin", "topoisomerase II inhibitor", "topoisomerase II", "cancer", "30 mg/m2|60 mg/m2", "i.v."),
    DrugClass("platin", "DNA cross-linking agent", "tumour DNA", "cancer", "75 mg/m2|100 mg/m2", "i.v."),
    DrugClass("mab", "monoclonal antibody", "the HER2 ectodomain", "cancer", "4 mg/kg|8 mg/kg", "by i.v. infusion"),
    DrugClass("oxacin", "DNA gyrase inhibitor", "DNA gyrase", "infection", "200 mg|400 mg|500 mg", "orally"),
    DrugClass("cillin", "cell-wall inhibitor", "transpeptidases", "infection", "500 mg|1 g|2 g", "i.m."),
    DrugClass("conazole", "CYP51 inhibitor", "fungal CYP51", "infection", "100 mg|200 mg", "orally"),
    DrugClass("mycin", "ribosome inhibitor", "the bacterial ribosome", "infection", "250 mg|500 mg", "i.v."),
    DrugClass("barbital", "sedative hypnotic", "inhibitory synapses", "mind", "30 mg|60 mg|100 mg", "p.o."),
    DrugClass("azepam", "GABA-A receptor modulator", "GABA-A receptors", "mind", "2 mg|5 mg|10 mg", "orally"),
    DrugClass("peridol", "D2-receptor antagonist", "striatal D2 receptors", "mind", "1.5 mg|5 mg|10 mg", "i.m."),
    DrugClass("oxetine", "selective reuptake inhibitor", "the SERT transporter", "mind", "20 mg|40 mg|60 mg", "orally"),
    DrugClass("profen", "cyclooxygenase inhibitor", "COX-1 and COX-2", "pain", "200 mg|400 mg|600 mg", "orally"),
    DrugClass("coxib", "selective COX-2 inhibitor", "COX-2", "pain", "60 mg|90 mg|200 mg", "orally"),
    DrugClass("triptan", "5-HT1B/1D agonist", "5-HT1B receptors", "pain", "2.5 mg|5 mg|50 mg", "s.c."),
    DrugClass("caine", "Nav1.7 channel blocker", "axonal Nav1.7 channels", "pain", "0.25%|0.5%|2%", "epidurally"),
    DrugClass("prazole", "proton-pump inhibitor", "the gastric proton pump", "stomach", "20 mg|30 mg|40 mg", "p.o."),
    DrugClass("setron", "5-HT3-receptor antagonist", "5-HT3 receptors", "stomach", "1 mg|4 mg|8 mg", "i.v."),
    DrugClass("tidine", "H2-receptor antagonist", "H2 receptors", "stomach", "150 mg|300 mg", "orally"),
    DrugClass("pride", "gastroprokinetic agent", "enteric 5-HT4 receptors", "stomach", "1 mg|2 mg|10 mg", "p.o."),
    DrugClass("terol", "beta2-adrenoceptor agonist", "beta2-adrenoceptors", "lung", "6 microg|12 microg", "by inhaler"),
    DrugClass("lukast", "CysLT1-receptor antagonist", "CysLT1 receptors", "lung", "5 mg|10 mg|20 mg", "orally"),
    DrugClass("tropium", "muscarinic antagonist", "M3 receptors", "lung", "18 microg|40 microg", "by nebuliser"),
    DrugClass("tadine", "H1-receptor antagonist", "H1 receptors", "lung", "5 mg|10 mg", "orally"),
]

# A therapeutic area: what its drugs treat, what is measured (verb|noun|unit), what goes wrong, and where it is studied.
AREAS = {
    "heart": {
        "disease": "essential hypertension; chronic heart failure (CHF); atrial fibrillation (AF); "
                   "stable angina pectoris; left ventricular hypertrophy (LVH); acute myocardial infarction (AMI)",
        "outcome": "lowered|systolic blood pressure|mmHg; slowed|resting heart rate|beats/min; "
                   "raised|ejection fraction|%; reduced|left ventricular mass|g/m2; prolonged|exercise time|s",
        "adverse": "bradycardia; orthostatic hypotension; ankle oedema; dry cough; heart block; syncope",
        "animals": "spontaneously hypertensive rats; dogs with coronary ligation; pressure-overloaded mice",
        "tissue": "cardiomyocytes; aortic rings; vascular smooth muscle cells",
    },
    "metabolism": {
        "disease": "type 2 diabetes mellitus (T2DM); familial dyslipidaemia; metabolic syndrome (MetS); "
                   "morbid obesity; nonalcoholic steatohepatitis (NASH); diabetic nephropathy",
        "outcome": "lowered|glycated haemoglobin|%; reduced|body weight|kg; lowered|apolipoprotein B|g/l; "
                   "improved|beta-cell function|units; reduced|liver fat|%",
        "adverse": "hypoglycaemia; weight gain; myopathy; genital infection; rhabdomyolysis; ketoacidosis",
        "animals": "Zucker fatty rats; db/db mice; rabbits on an atherogenic diet",
        "tissue": "pancreatic islets; primary hepatocytes; adipocytes",
    },
    "cancer": {
        "disease": "non-small cell lung cancer (NSCLC); metastatic breast cancer; acute myeloid leukaemia (AML); "
                   "ovarian carcinoma; hepatocellular carcinoma (HCC); renal cell carcinoma (RCC)",
        "outcome": "prolonged|progression-free survival|months; raised|the objective response rate|%; "
                   "reduced|tumour volume|mm3; prolonged|overall survival|months; delayed|local recurrence|months",
        "adverse": "neutropenia; cardiomyopathy; acneiform rash; mucositis; alopecia; peripheral neuropathy",
        "animals": "nude mice with xenografts; tumour-bearing rats; transgenic mice",
        "tissue": "tumour spheroids; leukaemic blasts; patient-derived organoids",
    },
    "infection": {
        "disease": "community-acquired pneumonia (CAP); infective endocarditis; urinary tract infection (UTI); "
                   "invasive candidiasis; bacterial meningitis; sepsis",
        "outcome": "raised|the clinical cure rate|%; shortened|fever|h; reduced|colony counts|log10 CFU; "
                   "reduced|the relapse rate|%; improved|microbial eradication|%",
        "adverse": "ototoxicity; tendon rupture; antibiotic-associated colitis; urticaria; cholestatic hepatitis; "
                   "vestibular damage",
        "animals": "neutropenic mice; rabbits with endocarditis; guinea pigs with pneumonia",
        "tissue": "infected macrophages; clinical isolates; biofilm cultures",
    },
    "mind": {
        "disease": "major depressive disorder (MDD); schizophrenia; generalised anxiety disorder (GAD); "
                   "chronic insomnia; temporal lobe epilepsy (TLE); bipolar mania",
        "outcome": "improved|depression ratings|points; reduced|seizure frequency|per month; "
                   "prolonged|total sleep time|min; reduced|anxiety scores|points; "
                   "improved|psychotic symptoms|points",
        "adverse": "sedation; tardive dyskinesia; parkinsonism; amnesia; withdrawal seizures; sexual dysfunction",
        "animals": "kindled rats; mice in the forced swim test; maternally separated rats",
        "tissue": "hippocampal slices; cortical neurones; striatal synaptosomes",
    },
    "pain": {
        "disease": "rheumatoid arthritis (RA); acute migraine; osteoarthritis (OA) of the knee; "
                   "diabetic neuropathy; ankylosing spondylitis; cluster headache",
        "outcome": "reduced|joint swelling|joints; raised|the two-hour pain-free rate|%; reduced|pain at rest|mm; "
                   "improved|grip strength|kPa; shortened|morning stiffness|min",
        "adverse": "dyspepsia; gastric ulceration; chest tightness; interstitial nephritis; tinnitus; convulsions",
        "animals": "rats with adjuvant arthritis; mice in the hot-plate test; rats with nerve ligation",
        "tissue": "synovial fibroblasts; articular chondrocytes; trigeminal neurones",
    },
    "stomach": {
        "disease": "gastro-oesophageal reflux disease (GORD); duodenal ulcer; irritable bowel syndrome (IBS); "
                   "diabetic gastroparesis; postoperative nausea and vomiting (PONV); erosive oesophagitis",
        "outcome": "raised|intragastric pH|units; reduced|emetic episodes|episodes; improved|ulcer healing|%; "
                   "shortened|gastric emptying|min; reduced|heartburn scores|points",
        "adverse": "constipation; diarrhoea; gynaecomastia; hypomagnesaemia; abdominal cramps; QT prolongation",
        "animals": "pylorus-ligated rats; ferrets with emesis; dogs with a gastric pouch",
        "tissue": "parietal cells; gastric glands; ileal strips",
    },
    "lung": {
        "disease": "chronic obstructive pulmonary disease (COPD); bronchial asthma; "
                   "seasonal allergic rhinitis (SAR); chronic urticaria; "
                   "exercise-induced bronchoconstriction (EIB); cystic fibrosis (CF)",
        "outcome": "raised|forced expiratory volume|ml; reduced|exacerbations|per year; "
                   "improved|morning peak flow|l/min; reduced|nasal symptom scores|points; "
                   "reduced|sputum eosinophils|%",
        "adverse": "tremor; palpitations; dry mouth; oral candidiasis; drowsiness; paradoxical bronchospasm",
        "animals": "sensitised guinea pigs; mice challenged with allergen; smoke-exposed rats",
        "tissue": "tracheal strips; bronchial epithelial cells; human mast cells",
    },
}

PLAIN_CHEMICALS = [
    "ethanol", "caffeine", "lithium carbonate", "nicotine", "ascorbic acid", "sodium chloride", "riboflavin",
    "magnesium sulphate", "warfarin", "potassium citrate", "morphine", "zinc chloride", "acetylsalicylic acid",
    "calcium gluconate", "digoxin", "ferrous fumarate", "cortisol", "melatonin", "methylene blue", "retinol",
    "cyclosporine", "dopamine", "paracetamol", "acetylcholine", "glutamate", "noradrenaline", "quinidine",
    "allyl alcohol", "glycerol", "theophylline", "lead acetate", "rifampicin",
]
SALTS = [
    "{} hydrochloride", "{} tartrate", "{} maleate", "{} mesylate", "{} hydrobromide", "{} besylate", "{} succinate",
    "sodium {}",
]
METABOLITES = ["N-desmethyl{}", "4-hydroxy{}", "{}-N-oxide", "nor{}"]

# Invented words that are no chemicals, by kind: how they are written and how they end. The ends come in turn, two
# names each, so that some of the test's are new in shape too.
OTHER_NAMES = {
    "protein": (str.lower, ["in", "ulin", "globin", "ectin"]),
    "enzyme": (str.lower, ["kinase", "synthase", "oxidase", "tase"]),
    "gene": (str.upper, ["1", "2b", "4", "7a"]),
    "microbe": (str.capitalize, ["bacter", "ella", "coccus", "monas"]),
    "instrument": (str.lower, ["graph", "meter", "scope", "trode"]),
    "trial": (str.upper, ["", "on", "a", "is"]),
    "cell_line": (str.upper, ["-17", "-29", "-293", "-60"]),
}
ONSETS = ["b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "cl", "dr", "fl", "pr", "tr"]
VOWELS = "aeiou"
LABORATORIES = [first + second for first in "ABGKLMRW" for second in "DSTVX"]
NAMES_PER_CLASS, OTHER_NAMES_PER_AREA = 20, 8

# {slot}: a word of the story; {x|y}: either; {2-8}, {0.2-0.9}: a number. Every document begins with a background.
SENTENCES = {
    "background": [
        "{disease_full} {remains|is still|has become} a {leading|common} cause of {disability|death} in {patients}.",
        "The {treatment|management} of {disease_full} is {often|usually} limited by {adverse} or by poor adherence.",
        "Although {comparator_drug} is {widely|commonly} used in {disease_full}, {20-60}% of patients do not respond.",
        "Few {controlled|long-term|reliable} data exist on {drug_full} in {patients} with {disease_full}.",
        "Patients with {disease_full} often have {raised|low|abnormal} {agent}, which {predicts|precedes} {adverse}.",
        "{gene} and {protein} have been {implicated in|linked to} {disease_full}, but their role is {unclear|debated}.",
        "We {studied|examined|asked} whether {drug_full} is of {use|benefit} in {disease_full}.",
        "Since the {trial} {trial|study}, {agent} is {thought|known} to {worsen|influence} {disease_full}.",
    ],
    "mechanism": [
        "{drug_full} is a {novel|new|potent|selective} {mechanism} that {binds to|acts on} {target}.",
        "The {mechanism} {drug_full} {inhibits|blocks|modulates} {target} without {affecting|binding to} {enzyme}.",
        "{drug_full}, unlike {comparator_drug}, {binds|reaches} {target} in {tissue} within {5-50} min.",
        "By its action on {target}, {drug_full} {alters|corrects} {outcome} {in vivo|in healthy volunteers}.",
        "{drug_full} is {rapidly|slowly} converted to {metabolite} by {enzyme}, and both {act on|bind to} {target}.",
        "Binding of {drug_full} to {target} {depends on|requires} {protein}, a {regulator|partner} of {gene}.",
    ],
    "biology": [
        "{agent} {raises|lowers|modifies} the {response|sensitivity} of {tissue} to {agent}.",
        "{agent} has been {found|detected|measured} in {tissue}, where it {opposes|enhances} the effect of {agent}.",
        "Expression of {gene} is {induced|suppressed} by {agent} in {tissue}, and {enzyme} is its {main|only} product.",
        "Loss of {enzyme} makes {tissue} {resistant|vulnerable} to {agent} but not to {agent}.",
        "{microbe} {colonises|invades} {tissue} and {degrades|releases} {agent} in {disease}.",
        "A {deficit|surplus} of {agent} {accompanies|follows} {disease} and {its complications|{complication}}.",
    ],
    "trial_design": [
        "We conducted a {randomised|double-blind|crossover} trial of {drug} in {n} {patients} with {disease}.",
        "A total of {n} {patients} with {disease} (mean age {age} years) were allocated to {drug} or {comparator}.",
        "The {trial} {trial|study} enrolled {n} {patients} and compared {drug} with {comparator} for {weeks} weeks.",
        "In {trial}, {n} {patients} at {5-60} {centres|hospitals} took {drug} vs. {comparator} on top of {plain}.",
        "Eligible {patients} had {severe|stable} {disease}, i.e. {complication} or {adverse}, and took no {plain}.",
        "This cohort of {n} {patients} {received|was prescribed} {drug}, {comparator} or neither for {disease}.",
    ],
    "trial_dosing": [
        "{drug} was {given|administered} {route} at {dose} {once|twice} daily for {weeks} weeks.",
        "Subjects {received|took} {drug} {dose} {route} (n = {arm}) or {comparator} (n = {arm}) for {weeks} weeks.",
        "Treatment with {dose} of {drug} {route} was preceded by a {1-4}-week washout of {plain}.",
        "The dose of {comparator} was {doubled|adjusted} after {2-6} weeks, and that of {drug} was kept at {dose}.",
        "Subjects kept {plain} constant, and the {instrument} read {outcome} before and after {drug} {dose} {route}.",
        "{outcome} was assessed by {instrument} at baseline and {weeks} weeks after {drug} {dose} {route}.",
    ],
    "trial_result": [
        "After {weeks} weeks, {drug} {improved} compared with {comparator} ({p}).",
        "Compared with {comparator}, {drug} {dose} {improved} ({ratio}).",
        "Mean {outcome} was {10-60} {unit} with {drug} and {10-60} {unit} with {comparator} ({p}).",
        "{it} {improved} in {40-90}% of {patients}, against {20-70}% of those on {comparator} ({p}).",
        "In {patients} who completed {weeks} weeks, {it} {improved} ({ratio}).",
        "The difference in {outcome} between {drug} and {comparator} was {2-19} {unit} ({p}).",
    ],
    "pharmacokinetics": [
        "Plasma {concentrations|levels} of {drug} {peaked|were maximal} at {1-6} h and were not altered by {plain}.",
        "Coadministration of {plain} {raised|lowered} the {clearance|bioavailability} of {drug} by {10-80}%.",
        "Carriers of a {gene} variant {cleared|absorbed} {drug} {faster|more slowly} ({p}).",
        "Urinary {recovery|excretion} of {metabolite} was {10-60}% of the {dose} dose and depended on {enzyme}.",
        "{agent} {fell|rose} by {10-60}% in {patients} on {drug} {dose}, and {agent} did not change.",
        "Levels of {agent} {correlated with|were unrelated to} {outcome} during {drug} (r = {0.11-0.89}).",
    ],
    "animal_design": [
        "{animals} {received|were given} {drug} ({mg_per_kg} mg/kg/day, {i.v.|i.p.|s.c.}) or vehicle for {days} days.",
        "{drug} {mg_per_kg} mg/kg/day, {comparator_drug} or vehicle was infused for {days} days in {animals}.",
        "{animals} were {primed|challenged} with {agent} {10-90} min before {drug} ({mg_per_kg} mg/kg, {i.v.|i.p.}).",
        "To model {disease}, {animals} were exposed to {agent} and then given {drug} {mg_per_kg} mg/kg {i.p.|s.c.}.",
    ],
    "animal_result": [
        "At {mg_per_kg} mg/kg/day {drug} {improved} in {animals} ({p}).",
        "{it} {improved} in {animals}, as did {comparator_drug} ({p}).",
        "Pretreatment with {agent} {abolished|did not change|enhanced} the effect of {drug} on {outcome} ({p}).",
        "In animals lacking {gene} or {protein}, {drug} {improved} by {10-70}% ({p}).",
        "Deficiency of {agent} {blunted|prolonged} the action of {it} in {animals} ({p}).",
        "{drug}, alone or with {agent}, {improved} by day {days} ({p}).",
    ],
    "cell_design": [
        "{cell_line} cells and {tissue} were {incubated|cultured} with {drug} ({1-90} microM) for {2-72} h.",
        "{tissue} were {exposed to|perfused with} {drug} or {comparator_drug} ({1-90} nM) in the presence of {agent}.",
        "We {measured|quantified} {agent} in {tissue} treated with {drug}, using the {instrument}.",
        "{cell_line} cells were loaded with {agent} and {drug} ({1-90} microM) before use of the {instrument}.",
    ],
    "cell_result": [
        "{drug} {inhibited|displaced|blocked} {target} in {tissue} with an IC50 of {1-90} nM.",
        "In {tissue}, {agent} {potentiated|reversed} the action of {drug} on {target} ({p}).",
        "{metabolite} was {less|more} potent than {drug} and did not affect {agent}.",
        "{it} left {agent} and {agent} unchanged but {halved|doubled} {gene} expression ({p}).",
        "{drug}, but not {agent}, {protected|depleted} {cell_line} cells after {2-72} h ({p}).",
        "Removal of {agent} {prevented|delayed} binding of {drug} to {target} ({p}).",
    ],
    "case_history": [
        "A {age}-year-old {man|woman} with {disease} developed {adverse} {2-30} days after {drug} {dose} {route}.",
        "We {report|describe} {adverse} in a {age}-year-old {man|woman} who took {drug} {dose} {route} for {disease}.",
        "{adverse} occurred in a {age}-year-old {man|woman} on {drug} ({dose} {route}) and {plain} for {disease}.",
        "The {man|woman}, aged {age} years, took {plain} when {drug} {dose} {route} was {added|chosen} for {disease}.",
    ],
    "case_course": [
        "Symptoms {resolved|subsided} {2-21} days after {drug} was {stopped|withdrawn} and recurred on rechallenge.",
        "Cultures grew {microbe}, {agent} was {normal|undetectable}, and {adverse} cleared once {drug} was withheld.",
        "{comparator_drug} was {substituted|given instead}, and {complication} did not {recur|follow}.",
        "{drug} was replaced by {comparator_drug} plus {plain}, with {full|slow} recovery from {adverse}.",
        "A test for {agent} was {positive|negative}, and {drug} {dose} was {reduced|discontinued}.",
        "Serum {agent} was {raised|normal}, which {excluded|suggested} another cause of {complication}.",
    ],
    "adverse": [
        "The {commonest|most frequent} adverse effects of {drug} were {adverse} and {complication}.",
        "{adverse} {occurred in|was reported by} {5-40}% of those on {drug} and {2-20}% of controls.",
        "{drug}-induced {adverse} was {dose-related|transient|mild} and was {prevented|aggravated} by {plain}.",
        "Two subjects {discontinued|stopped} {drug} because of {adverse}, and one had {complication}.",
        "Neither {drug} nor {agent} {caused|provoked} {complication}, but {adverse} was seen at {dose}.",
        "{complication} was {attributed|ascribed} to {agent} rather than to {drug}.",
    ],
    "conclusion": [
        "{drug} {dose} {route} is {worthwhile} in {patients} with {disease}.",
        "We conclude that {it} {improved} and is {worthwhile} in {disease}.",
        "These {data|findings|results} {suggest|indicate} that the {mechanism} {drug} is {worthwhile} in {disease}.",
        "Thus {drug} {improved}, and {agent} {deserves|needs} further study in {disease}.",
        "As a {treatment|therapy} of {disease}, {drug} is {worthwhile}, provided that {adverse} is avoided.",
        "In {disease}, {drug} is {worthwhile} {when|whether or not} {agent} is present.",
    ],
}
# The course of a story; a role with a question mark stands in half of the documents.
PLANS = [
    "background mechanism biology? trial_design trial_dosing trial_result trial_result? adverse conclusion",
    "background mechanism biology? animal_design animal_result animal_result pharmacokinetics? adverse? conclusion",
    "background mechanism biology cell_design cell_result cell_result cell_result? biology? conclusion",
    "background mechanism case_history case_course case_course? pharmacokinetics? biology? adverse? conclusion",
]
POPULATIONS = ["elderly patients", "adults", "inpatients", "women", "men", "outpatients", "children", "smokers"]
EFFECTIVE = {
    "improved": ["{significantly |markedly |}{verb} {outcome}"],
    "p": ["p < 0.{001|01|05}", "p = {0.002-0.049}"],
    "ratio": ["hazard ratio {0.41-0.69}, 95% CI {0.22-0.40}-{0.71-0.94}",
              "odds ratio {1.9-3.2}, 95% CI {1.2-1.8}-{3.3-5.9}"],
    "worthwhile": ["{effective|useful|beneficial}", "{superior|preferable} to {comparator}"],
}
INEFFECTIVE = {
    "improved": ["did not {affect|alter|influence} {outcome}", "had no {detectable|significant} effect on {outcome}"],
    "p": ["p = {0.11-0.94}", "p > 0.{05|1|2}"],
    "ratio": ["hazard ratio {0.93-1.06}, 95% CI {0.71-0.89}-{1.09-1.42}",
              "odds ratio {0.9-1.1}, 95% CI {0.5-0.8}-{1.2-1.8}"],
    "worthwhile": ["{ineffective|of no value|of little use}", "{no better than|inferior to} {comparator}"],
}
# fmt: on

SLOT = re.compile(r"\{([^{}]*)\}")
CHEMICAL = re.compile("‹([^›]*)›")
TOKEN = re.compile(r"[^\W_]+|[^\w\s]")  # BLURB's files split at all punctuation: p < 0 . 05


class Lexicon(NamedTuple):
    """The invented names of one seed."""

    drugs: dict[str, list[tuple[str, str]]]  # stem -> (name, the laboratory's code for it)
    others: dict[tuple[str, str], list[str]]  # (kind, area) -> names


Story = dict[str, Sequence[str]]
"""What each slot of a sentence may be filled with; chemical names stand between ‹ and ›."""


def sample_documents(num_documents: int, seed: int) -> Iterator[tuple[str, str]]:
    """(document id, text) of documents 0, 1, ...; document k is a function of (seed, k) alone."""
    lexicon = _lexicon(seed)
    for number in range(num_documents):
        rng = Random(f"document {seed} {number}")
        story = _story(rng, lexicon)
        told: list[str] = []  # templates; none stands twice in a document
        for step in _pick(rng, PLANS).split():
            role = step.removesuffix("?")
            if role == step or rng.random() < 0.5:
                told.append(_pick(rng, [template for template in SENTENCES[role] if template not in told]))
        text = " ".join(_sentence(rng, template, story) for template in told)
        yield f"sample-{number:06d}", CHEMICAL.sub(r"\1", text)


def write_sample_ner(folder: Path, seed: int) -> None:
    """train.tsv, dev.tsv and test.tsv in BLURB's format: token, tab, B, I or O; a blank line after a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    lexicon = _lexicon(seed)
    for part, num_sentences in NER_SENTENCES.items():
        rng = Random(f"ner {part} {seed}")
        with (folder / f"{part}.tsv").open("w", encoding="utf-8", newline="\n") as file:
            for _ in range(num_sentences):
                template = _pick(rng, ner_templates(_pick(rng, list(SENTENCES)), part))
                sentence = _sentence(rng, template, _story(rng, lexicon, part))
                file.writelines(f"{token}\t{tag}\n" for token, tag in _tagged(sentence))
                file.write("\n")


def ner_templates(role: str, part: str) -> list[str]:
    """The sentence templates of a role that a part of the task uses."""
    return [template for i, template in enumerate(SENTENCES[role]) if (i % 3 == 2) == (part == "test")]


def _lexicon(seed: int) -> Lexicon:
    rng = Random(f"lexicon {seed}")
    taken = {""}

    def coin(ending: str) -> str:
        name = ""
        while name in taken:
            links = "lmnrstvx" if ending[:1] in VOWELS else ["", "", "n", "r"]
            syllables = [_pick(rng, choices) for choices in (ONSETS, VOWELS, ONSETS, VOWELS, links)]
            name = "".join(syllables) + ending
        taken.add(name)
        return name

    drugs = {}
    for number, stem in enumerate(row.stem for row in CLASSES):
        # As names do, laboratories belong to a part of the annotation task: their number is a multiple of 4.
        laboratories = [LABORATORIES[(4 * number + i) % len(LABORATORIES)] for i in range(NAMES_PER_CLASS)]
        drugs[stem] = [(coin(stem), f"{laboratory}-{_integer(rng, 1000, 9999)}") for laboratory in laboratories]
    others = {
        (kind, area): [written(coin(endings[i // 2 % len(endings)])) for i in range(OTHER_NAMES_PER_AREA)]
        for kind, (written, endings) in OTHER_NAMES.items()
        for area in AREAS
    }
    return Lexicon(drugs, others)


def _story(rng: Random, lexicon: Lexicon, part: str = "") -> Story:
    """One drug's story; with `part`, all names in it are of that part of the annotation task."""

    def own(names: Sequence) -> Sequence:
        return [name for i, name in enumerate(names) if part in ("", PARTS[i % len(PARTS)])]

    classes = CLASSES[::2] if part in ("train", "dev") else CLASSES
    drug_class = _pick(rng, classes)
    rival = _pick(rng, [row for row in classes if row.area == drug_class.area])
    (name, code), (sibling, _) = _two(rng, own(lexicon.drugs[drug_class.stem]))
    other_name = sibling if rival is drug_class else _pick(rng, own(lexicon.drugs[rival.stem]))[0]
    salt = _pick(rng, own(SALTS)).format(name)
    drug_full, *drug = _pick(
        rng,
        [
            (f"‹{name}›", f"‹{name}›"),
            (f"‹{salt}›", f"‹{name}›"),
            (f"‹{code}›", f"‹{code}›"),
            (f"‹{name}› (‹{code}›)", f"‹{name}›", f"‹{name}›", f"‹{code}›"),
        ],
    )
    plain = [f"‹{chemical}›" for chemical in _two(rng, own(PLAIN_CHEMICALS))]
    others = {kind: _two(rng, own(lexicon.others[kind, drug_class.area])) for kind in OTHER_NAMES}
    area = {what: entries.split("; ") for what, entries in AREAS[drug_class.area].items()}
    verb, outcome, unit = _pick(rng, area["outcome"]).split("|")
    disease = _pick(rng, area["disease"])
    abbreviation = re.search(r"\((\w+)\)", disease)
    adverse, complication = _two(rng, area["adverse"])
    metabolite = _pick(rng, own(METABOLITES)).format(name)
    arm = _integer(rng, 10, 200)
    once = {  # drawn once, the same in all sentences
        "drug_full": drug_full,
        "comparator_drug": f"‹{other_name}›",
        "comparator": _pick(rng, [f"‹{other_name}›", "placebo"]),
        "metabolite": f"‹{metabolite}›",
        "mechanism": drug_class.mechanism,
        "target": drug_class.target,
        "route": drug_class.route,
        "dose": _pick(rng, drug_class.doses.split("|")),
        "mg_per_kg": _pick(rng, ["0.5", "1", "3", "10", "30"]),
        "disease_full": disease,
        "disease": abbreviation[1] if abbreviation else disease,
        "verb": verb,
        "outcome": outcome,
        "unit": unit,
        "adverse": adverse,
        "complication": complication,
        "animals": _pick(rng, area["animals"]),
        "tissue": _pick(rng, area["tissue"]),
        "patients": _pick(rng, POPULATIONS),
        "n": str(2 * arm),
        "arm": str(arm),
        "age": str(_integer(rng, 20, 79)),
        "weeks": str(_integer(rng, 2, 24)),
        "days": str(_integer(rng, 4, 28)),
    }
    return {
        **{slot: [words] for slot, words in once.items()},
        **_pick(rng, [EFFECTIVE, INEFFECTIVE]),
        **others,
        "drug": drug,
        "it": [*drug, "the drug", f"this {drug_class.mechanism}"],
        "plain": plain,
        "agent": [*plain, f"‹{other_name}›", *(others[kind][0] for kind in ("protein", "enzyme", "gene", "microbe"))],
    }


def _sentence(rng: Random, template: str, story: Story) -> str:
    text = template
    while slot := SLOT.search(text):  # the innermost first: an alternative may hold slots
        content = slot[1]
        if content == "agent":  # two agents of a sentence differ
            filling = _pick(rng, [agent for agent in story["agent"] if agent not in text])
        elif content in story:
            filling = _pick(rng, story[content])
        elif "|" in content:
            filling = _pick(rng, content.split("|"))
        else:
            low, high = content.split("-")
            decimals = len(low.partition(".")[2])
            units = 10**decimals
            filling = f"{_integer(rng, round(float(low) * units), round(float(high) * units)) / units:.{decimals}f}"
        text = text[: slot.start()] + filling + text[slot.end() :]
    text = re.sub(r"\b([Aa]) (?=‹?[aeiouAEIO])", r"\1n ", text)
    text = text.replace("..", ".")  # where the last word is an abbreviation
    first = int(text.startswith("‹"))
    return text[:first] + text[first].upper() + text[first + 1 :]


def _tagged(sentence: str) -> Iterator[tuple[str, str]]:
    for number, stretch in enumerate(CHEMICAL.split(sentence)):  # the odd ones are chemical names
        for place, token in enumerate(TOKEN.findall(stretch)):
            yield token, "O" if number % 2 == 0 else "I" if place else "B"


# All draws are made from rng.random(): of a seeded Random, its sequence alone is promised to stay the same in
# every version of Python.


def _integer(rng: Random, low: int, high: int) -> int:
    """Uniform in low..high, both included."""
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: Random, items: Sequence) -> Any:
    return items[_integer(rng, 0, len(items) - 1)]


def _two(rng: Random, items: Sequence) -> list:
    """Two different items."""
    first, step = _integer(rng, 0, len(items) - 1), _integer(rng, 1, len(items) - 1)
    return [items[first], items[(first + step) % len(items)]]
