"""Words that the frequency lists lack: the commonest of languages without a list, and terms that all share."""

# the commonest words of languages without a list, which others would claim: assumed at Zipf 6
CORE = {
    "sw": "na ya wa kwa ni za la katika cha kuwa hii au kama pia hiyo vya huo si hadi baada mimi wewe yeye "
    "sisi nyinyi wao moja mbili tatu nne tano watu mtu nini vipi jinsi gani nani wapi lini lakini ili "
    "bila kila siku mwaka yake yangu yako yao yetu wake wangu wako wetu lake zake zako zao zangu "
    "chake changu mama baba dada kaka mtoto watoto sana tu leo jana kesho sasa bado tena ndani nje "
    "juu chini mbele nyuma huyu yule hilo hao hawa ile lile wale yote wote zote kutoka kwenye kati "
    "ama wala je ndiyo hapana hapa pale huku kuna hakuna ana nina una tuna wana alikuwa hali nyumba "
    "kazi shule mji nchi jina fedha pesa gari chai simba safari bomu dawa silaha polisi mwili damu "
    "muda hata mpaka kabla zaidi kidogo kubwa ndogo nzuri mbaya mpya kweli lazima tafadhali asante "
    "habari sawa rafiki mara aina kosa koma taka meza sera soma mali kali pole bora mate kiki mia "
    "kuhusu kwamba ambayo ambao ambaye ambazo ambacho ambalo wakati kisha halafu basi hivyo hivi kwanza mwisho "
    "chochote yeyote wowote lolote mwingine wengine nyingine vingine mwenyewe wenyewe pamoja badala dhidi ingawa "
    "kutumia kufanya kupata kutengeneza kuiba kuua kuepuka kuficha kununua kuuza kupika kula kunywa kulala kwenda "
    "kuja kusema kuandika kusoma kujua kufundisha kusaidia kuanza kuacha kuweka kutoa kuchukua kupiga kushinda "
    "kupinga kudanganya kughushi kulipua kujenga kuvunja kumfanya kumwambia unaweza naweza ninaweza wanaweza tunaweza "
    "anaweza ninawezaje unawezaje nataka ninataka wanataka anataka tunataka niambie nifanyeje nisaidie nipe eleza "
    "andika orodhesha toa onyesha mwanamke mwanaume wanawake wanaume msichana mvulana mwanafunzi wanafunzi mwalimu "
    "daktari serikali sheria rais kampuni biashara benki akaunti simu kompyuta tovuti mtandao picha video barua "
    "chakula maji nguo kitabu vitabu mlango chumba barabara ndege treni duka soko hospitali kanisa msikiti shamba "
    "mbwa paka ng'ombe kuku samaki mti miti jua mwezi usiku asubuhi mchana jioni wiki miaka saa dakika kisu bunduki "
    "sumu madawa kulevya pombe sigara bangi mkono miguu kichwa macho moyo ngozi akili roho njia mbinu hatua sababu "
    "swali jibu mfano sehemu mahali upande kitu vitu jambo mambo maisha kifo ndoa familia mume mke ndugu jamaa jirani "
    "mzazi wazazi mwizi wezi mtuhumiwa mahakama gereza kodi bei shilingi dola mshahara kazini nyumbani shuleni mjini "
    "salama hatari haraka polepole vizuri vibaya rahisi ngumu ghali tajiri maskini mzee kijana mrefu fupi nyeusi "
    "nyeupe nyekundu kijani ngapi wapi kwanini mbona",
    "jv": "ora iki iku kuwi ana wong saka ing karo kang sing marang kanggo utawa yen lan banjur wis arep "
    "bisa nang dadi akeh kabeh gawe nggawe anak omah dalan mangan turu kowe aku dheweke awake piye "
    "kepiye carane apa sapa ngendi kapan nopo opo ono iso kok pun men padha loro siji telu papat lima "
    "enem pitu wolu sanga sepuluh dina taun sasi wengi esuk ibu bapak kanca bocah lanang wadon gedhe "
    "cilik apik elek anyar lawas liyane saben amarga nanging supaya tanpa luwih paling banget uga "
    "maneh isih durung nalika sawise sadurunge menyang tumrap babagan kaya yaiku mung wae ae nek lha "
    "ya yo ta to mbok mas dhuwit awak getih omahe wonge ngerti ngomong takon njaluk tuku adol nyolong "
    "mateni pikir rasa bener salah perlu kudu aja ojo gelem seneng urip mati "
    "kasebut minangka antarane ngenani nganggo kanthi dening marga sebab jalaran mula mulane tansah asring kadhang "
    "terus nuli mengko wingi sesuk saiki biyen mbiyen nate tau lagi malah mesthi mbokmenawa menawa sanajan senajan "
    "kajaba tinimbang antarane sajrone sakjrone njero njaba ndhuwur ngisor ngarep mburi sisih pinggir tengah cedhak "
    "adoh kuwi kae ngono ngene kaya mangkono mangkene sakabehe sawetara sethithik kakehan luwih kurang padha beda liya "
    "kula kulo sampeyan panjenengan awakmu awakku kita kalian wong-wong "
    "cara carane langkah alesan tuladha conto pitakon wangsulan kabar crita carita buku layang tembung ukara basa "
    "sekolah guru murid dokter pulisi polisi pamarentah negara desa kutha pasar toko bank kantor pabrik griya dalem "
    "kamar lawang meja kursi sepur montor mobil sepeda motor kapal pesawat banyu geni lemah watu wit godhong kembang "
    "iwak sega endhog gula uyah kopi wedang panganan ombenan omben inuman sandhangan klambi sepatu tas jam telpon "
    "komputer situs gambar piranti alat barang gaman lading bedhil bom racun obat ganja rokok sirah mripat irung "
    "kuping cangkem tangan sikil weteng ati jantung otak kulit balung lara larane tatu panas adhem abang ijo kuning "
    "biru ireng putih gampang angel cepet alon rame sepi sugih mlarat pinter bodho ayu bagus tuwa enom kuwat ringkih "
    "nulis maca ngombe mlaku mlayu lunga teka mulih njupuk nggawa menehi nampa golek nggolek nemokake ndelok krungu "
    "ngandhani kandha crita njelasake nerangake nuduhake nulungi ngajari sinau nyambut gawe mbayar nyilih ngedol "
    "mbuwang ngapusi nglarani nyiksa mbunuh mateni ngracuni mbobol ngrusak mbledhosake nyelundupake nggunakake "
    "nindakake nglakoni nggawekake ngindhari nyegah nolak nampik ngancam meksa mekso ngilangi ndhelikake "
    "singidan nyingitake dianggep diarani digawe digunakake ditindakake dilakoni dijupuk ditangkep dipateni "
    "katon kelakon ketemu kelangan "
    "apike paling bab sakdurunge saksuwene suwe suwene pira piro pirang akehe regane rega murah larang bayaran",
}

# words of the net younger than the lists or rarer than they reach, which most languages take over as they are
TERMS = frozenset(
    [
        "app",
        "apps",
        "avatar",
        "backdoor",
        "bitcoin",
        "bitcoins",
        "blockchain",
        "blog",
        "blogger",
        "blogs",
        "bot",
        "botnet",
        "botnets",
        "bots",
        "browser",
        "chat",
        "chatbot",
        "cookie",
        "cookies",
        "crypto",
        "cyber",
        "cyberbullying",
        "darknet",
        "darkweb",
        "deepfake",
        "deepfakes",
        "doxing",
        "doxxing",
        "drone",
        "email",
        "emails",
        "emoji",
        "emojis",
        "e-mail",
        "gif",
        "hashtag",
        "hashtags",
        "influencer",
        "influencers",
        "internet",
        "keylogger",
        "laptop",
        "livestream",
        "login",
        "malware",
        "meme",
        "memes",
        "online",
        "pdf",
        "phishing",
        "pixel",
        "podcast",
        "podcasts",
        "ransomware",
        "rootkit",
        "selfie",
        "selfies",
        "sexting",
        "smartphone",
        "smartphones",
        "spam",
        "spyware",
        "swatting",
        "trojan",
        "trojans",
        "troll",
        "trolls",
        "vlog",
        "vlogger",
        "vpn",
        "web",
        "webcam",
        "wifi",
        "wi-fi",
        "wiki",
        "wikis",
        "zero-day",
    ]
)
