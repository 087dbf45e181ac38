"""Vocabulary of the sample's invented pharmacology: drug classes, diseases, and the parts of invented names."""

from typing import NamedTuple


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

# A therapeutic area: its diseases, measured outcomes (verb|noun|unit), adverse effects, and models (animals, tissue).
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

# Invented words that are not chemicals, by kind: letter case and endings. Each ending serves two consecutive names, so
# that some endings are new in the test set.
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
# fmt: on
