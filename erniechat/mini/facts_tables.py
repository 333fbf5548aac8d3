"""Corrections and additions to the packages' facts, and the words that keep a gloss out."""

import re

# Disputed or defunct entries, or ones whose capital is disputed: the model should say "I don't
# know".
LEFT_OUT = {"AQ", "EH", "IL", "PS", "XK", "TW", "CS", "AN", "IO", "GS"}
CAPITAL_FIXES = {
    "US": "Washington, D.C.",
    "KZ": "Astana",
    "LK": "Sri Jayawardenepura Kotte",
    "GQ": "Malabo",
}
NAME_FIXES = {"NL": "Netherlands", "BS": "Bahamas", "MM": "Myanmar"}
ALIASES = {
    "US": ["USA", "the US", "the USA", "America", "the United States"],
    "GB": ["UK", "the UK", "Britain", "Great Britain"],
    "NL": ["Holland", "the Netherlands"],
    "CZ": ["the Czech Republic"],
    "AE": ["UAE", "the UAE"],
    "CI": ["Cote d'Ivoire"],
    "MM": ["Burma"],
    "SZ": ["Swaziland"],
    "CV": ["Cape Verde"],
    "PH": ["the Philippines"],
    "RU": ["the Russian Federation"],
    "KR": ["Korea"],
    "CD": ["DR Congo", "the DRC"],
    "TR": ["Türkiye"],
    "VA": ["Vatican City", "the Vatican"],
    "BS": ["the Bahamas"],
    "GM": ["the Gambia"],
    "CN": ["the People's Republic of China", "PRC"],
    "TL": ["East Timor"],
}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
LANGUAGE_FIXES = {
    "PK": "Urdu",
    "SG": "English",
    "CM": "French",
    "PH": "Filipino",
    "IN": "Hindi",
    "KE": "English",
    "VA": "Italian",
    "TL": "Tetum",
    "PG": "Tok Pisin",
    "AF": "Dari",
    "LU": "Luxembourgish",
    "FI": "Finnish",
}
CAPITALS_ZH = {
    "CN": "北京",
    "FR": "巴黎",
    "DE": "柏林",
    "GB": "伦敦",
    "IT": "罗马",
    "ES": "马德里",
    "PT": "里斯本",
    "RU": "莫斯科",
    "JP": "东京",
    "KR": "首尔",
    "US": "华盛顿",
    "CA": "渥太华",
    "MX": "墨西哥城",
    "BR": "巴西利亚",
    "AR": "布宜诺斯艾利斯",
    "AU": "堪培拉",
    "NZ": "惠灵顿",
    "IN": "新德里",
    "TH": "曼谷",
    "VN": "河内",
    "MY": "吉隆坡",
    "ID": "雅加达",
    "PH": "马尼拉",
    "SG": "新加坡",
    "EG": "开罗",
    "ZA": "比勒陀利亚",
    "KE": "内罗毕",
    "NG": "阿布贾",
    "GR": "雅典",
    "TR": "安卡拉",
    "IR": "德黑兰",
    "IQ": "巴格达",
    "SA": "利雅得",
    "PL": "华沙",
    "CZ": "布拉格",
    "AT": "维也纳",
    "CH": "伯尔尼",
    "BE": "布鲁塞尔",
    "NL": "阿姆斯特丹",
    "DK": "哥本哈根",
    "SE": "斯德哥尔摩",
    "NO": "奥斯陆",
    "FI": "赫尔辛基",
    "IE": "都柏林",
    "HU": "布达佩斯",
    "RO": "布加勒斯特",
    "UA": "基辅",
    "CU": "哈瓦那",
    "PE": "利马",
    "CL": "圣地亚哥",
    "CO": "波哥大",
    "MN": "乌兰巴托",
    "NP": "加德满都",
    "PK": "伊斯兰堡",
    "KH": "金边",
    "LA": "万象",
    "IS": "雷克雅未克",
}
POS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
# Glosses with these words are kept out of the dictionary skill and of the plain text.
UNFIT = re.compile(
    r"\b(sex\w*|genital\w*|penis|vagina\w*|erotic\w*|intercourse|prostitut\w*|"
    r"rap(e|ed|ist|ing)|ethnic slur|offensive|disparag\w*|obscen\w*|vulgar\w*|slur|negro\w*|"
    r"homosexual\w*|copulat\w*|masturbat\w*|orgasm\w*|suicid\w*|murder\w*|kill\w*|nazi\w*|slave\w*|"
    r"lesbian\w*|whore\w*|breasts?|anus|anal|feces|excre\w*|nud\w*|naked|lust\w*|cocaine|heroin|"
    r"drug\w*|terroris\w*|bomb\w*|gay|jew\w*|muslim\w*|lewd\w*|semen|tortur\w*)\b",
    re.IGNORECASE,
)
